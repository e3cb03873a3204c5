"""One request on its way to a replica, and its answer on the way back: bytes in, bytes out.

No task, no ASGI, no database: callbacks between two connections. A task is made only where something has to be
awaited: an unknown route or token, a new connection to a replica.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine

from dstack.proxy.aim import Aim
from dstack.proxy.answer_body import AnswerBody, CountedBody, body_without_length
from dstack.proxy.chunks import LAST_CHUNK
from dstack.proxy.client import Client
from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.headers import (
    CORS_LINES,
    BadMessage,
    Hop,
    RequestHead,
    ResponseHead,
    build_response_head,
    has_body,
    opened,
    with_line,
)
from dstack.proxy.pool import ReplicaTimeout, Upstream
from dstack.proxy.refusals import refusal
from dstack.proxy.repeated import request_tail, response_head
from dstack.proxy.repo import Service
from dstack.proxy.request_body import BodyTooLarge, RequestBody
from dstack.proxy.usage import UsageReader

MAX_RESPONSE_HEAD_BYTES = 262144

log = logging.getLogger(__name__)
_REPEATABLE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))


class Exchange:
    """From `_send_head` on; what comes before that: `waiting`, `admission`."""

    __slots__ = (
        "_aim", "_answer", "_began", "_body", "_client", "_deps", "_has_repeated", "_hop", "_is_request_sent",
        "_is_spoilt", "_is_tunnel", "_is_untaken", "_path", "_pending", "_prefix", "_project", "_request",
        "_request_bytes", "_response", "_run", "_service", "_started", "_task", "_upstream", "_usage",
        "is_ready",
    )  # fmt: skip

    def __init__(
        self,
        deps: ProxyDependencies,
        client: Client,
        request: RequestHead,
        hop: Hop,
        route: tuple[str, str, bytes, bytes],
    ) -> None:
        """`route`: project, run, the path's prefix, and the target after it."""
        self._deps = deps
        self._client = client
        self._request = request
        self._hop = hop
        self._project, self._run, self._prefix, self._path = route
        self._service: Service | None = None
        self._upstream: Upstream | None = None
        self._task: asyncio.Task[None] | None = None
        self._request_bytes = b""
        self._is_request_sent = request.length == 0
        self._body = None if request.length == 0 else RequestBody(request.length, deps.max_body_bytes)
        self._response: ResponseHead | None = None
        self._answer: AnswerBody | None = None
        """None: no answer yet, or it came whole with its head."""
        self._pending = b""
        self._is_tunnel = False
        self._is_spoilt = False
        """The replica sent more than its answer: the connection can't be used again."""
        self._is_untaken = False
        """The replica takes no more of the request's body now."""
        self._has_repeated = False
        self._started = self._began = 0.0
        """When the request and its answer did, by the clock of the stats."""
        self._usage: UsageReader | None = None
        self._aim: Aim | None = None
        """None: any replica, the first time."""
        self.is_ready = False
        """The request's body can be passed on."""

    @property
    def service_id(self) -> str:
        return "" if self._service is None else self._service.id

    @property
    def has_begun_answer(self) -> bool:
        return self._response is not None

    # Towards the replica

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(coroutine)
        self._task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        log.error("proxying to service %s/%s failed", self._project, self._run, exc_info=error)
        self._let_go()
        self._count(is_error=True)
        self._refuse(500, f"Service {self._run}: the proxy could not find out where to send the request")

    def _refuse(self, status: int, detail: str, *extra: bytes) -> None:
        """An answer of our own, which browsers may read where they may read the service's."""
        if self._service is not None and self._service.is_cors_open:
            extra = (*extra, *CORS_LINES)
        self._client.send_error(status, detail, *extra)

    def _send_head(self) -> None:
        service = self._service
        assert service is not None
        strip = service.strip_prefix
        request = self._request
        target = self._path if strip else self._prefix + self._path
        cut = self._prefix if strip else b""
        tail = request_tail(request, self._hop, cut, with_authorization=not service.auth)
        self._request_bytes = b"%b %b%b" % (request.method, target, tail)
        self._dispatch(may_reuse=True)

    def _take_aim(self) -> Aim:
        if self._aim is None:
            assert self._service is not None
            self._aim = Aim(self._deps.balancer, self._service, self._request)
        return self._aim

    def _dispatch(self, *, may_reuse: bool, error: Exception | None = None) -> None:
        """To a replica that was not tried yet."""
        assert self._service is not None
        replicas = self._service.replicas
        if self._aim is None and not self._deps.balancer.failing:
            address = replicas[0] if len(replicas) == 1 else random.choice(replicas)
        else:
            chosen = self._take_aim().next_replica()
            if chosen is None:
                self._fail(error)
                return
            address = chosen
        upstream = self._deps.pool.take(address) if may_reuse else None
        if upstream is not None:
            self._attach(upstream)
        else:
            self._spawn(self._connect(address))

    async def _connect(self, address: str) -> None:
        try:
            upstream = await self._deps.pool.connect(address)
        except (OSError, ReplicaTimeout) as error:
            self._on_not_connected(address, error)
            return
        if upstream.is_lost:  # it was closed before we got here
            self._repeat(upstream)
        else:
            self._attach(upstream)

    def _on_not_connected(self, address: str, error: Exception) -> None:
        self._take_aim().missed(address)
        self._dispatch(may_reuse=True, error=error)

    def _attach(self, upstream: Upstream) -> None:
        self._task = None
        self._upstream = upstream
        upstream.exchange = self
        if self._client.is_write_paused:
            upstream.transport.pause_reading()
        upstream.transport.write(self._request_bytes)
        if self._body is not None:
            self._body.send_what_came(upstream, is_all=self._is_request_sent)
        self.is_ready = True
        if not self._is_request_sent:
            self._client.on_ready()

    def send_body(self, payload: bytes) -> None:
        """A piece of the request's body, or bytes of a tunnel."""
        upstream, body = self._upstream, self._body
        if not payload:
            return
        try:
            if upstream is not None and self._is_tunnel:
                upstream.quiet_ticks = 0
                upstream.transport.write(payload)
            elif upstream is not None and body is not None:
                body.send(upstream, payload)
            elif body is not None and body.is_held:
                self.is_ready = body.hold(payload)
        except BodyTooLarge as error:
            self._fail(error)

    def end_body(self) -> None:
        self._is_request_sent = True
        if self._body is not None:
            self._body.end(self._upstream)

    def on_replica_writable(self, *, is_writable: bool) -> None:
        self._is_untaken = not is_writable
        self._client.hold_reading(is_held=not is_writable)

    def on_client_writable(self, *, is_writable: bool) -> None:
        upstream = self._upstream
        if upstream is None or upstream.is_lost or upstream.transport.is_closing():
            return
        if is_writable:
            upstream.quiet_ticks = 0
            upstream.transport.resume_reading()
        else:
            upstream.transport.pause_reading()

    def cancel(self) -> None:
        """The client is gone: the replica hears of it at once."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._let_go()
        self._count()

    # Back to the client

    def on_replica_data(self, data: bytes) -> None:
        try:
            if self._answer is not None:
                self._pass_on(self._answer, data)
            elif self._is_tunnel:
                self._client.send(data)
            else:
                self._read_heads(data)
        except BadMessage as error:
            self._fail(error)

    def _pass_on(self, answer: AnswerBody, data: bytes) -> None:
        out = answer.feed(data)
        if out:
            self._client.send(out)
        if answer.is_finished:
            self._is_spoilt = answer.is_spoilt
            self._finish()

    def _read_heads(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(data) > MAX_RESPONSE_HEAD_BYTES:
                raise BadMessage("The replica's answer has too large a head")
            self._pending = data
            return
        assert self._upstream is not None
        response = self._upstream.heads.read(data[:end])
        if response.status == 101:
            self._switch(response, data[end:])
        elif response.status < 200:
            if self._request.minor:
                self._client.send(build_response_head(response, is_chunked=False, is_closing=False, minor=1))
            if data[end:]:
                self._read_heads(data[end:])
        else:
            if self._deps.balancer.failing:
                self._deps.balancer.succeeded(self._upstream.address)
            line = self._aim and self._aim.session_line(self._upstream.address, self._prefix, self._hop)
            self._response = with_line(response, line) if line else response
            self._begin_answer(self._response, data[end:])

    def _begin_answer(self, response: ResponseHead, body: bytes) -> None:
        """Sends the head, in one write with the part of the body that came with it."""
        request = self._request
        assert self._service is not None
        if self._service.is_cors_open:
            response = self._response = opened(response)
        self._began = self._deps.stats.now()
        if self._service.counts_tokens and response.status == 200:
            self._usage = UsageReader()
        left = response.length if has_body(response, request.method) else 0
        is_framed = left < 0 and request.minor == 1
        head = response_head(response, is_chunked=is_framed, is_closing=self._is_closing(), minor=request.minor)
        if left < 0:
            self._client.send(head)
            self._answer = body_without_length(left, self._usage, is_framed=is_framed)
            if body:
                self._pass_on(self._answer, body)
            return
        if len(body) > left:
            body = body[:left]
            self._is_spoilt = True
        if self._usage is not None:
            self._usage.feed(body)
        self._client.send(head + body if body else head)
        if len(body) == left:
            self._finish()
        else:
            self._answer = CountedBody(left - len(body), self._usage)

    def _is_closing(self) -> bool:
        response, request = self._response, self._request
        assert response is not None
        is_delimited_by_close = request.minor == 0 and response.length < 0 and has_body(response, request.method)
        return (
            request.is_closing or is_delimited_by_close or (request.expects_continue and not self._is_request_sent)
        )

    def _switch(self, response: ResponseHead, rest: bytes) -> None:
        if self._request.upgrade != b"websocket" or response.upgrade is None:
            raise BadMessage("The replica switches to a protocol that was not asked for")
        self._response = response
        self._is_tunnel = True
        head = build_response_head(response, is_chunked=False, is_closing=False, minor=1)
        self._client.send(head + rest)
        self._client.on_tunnel()

    def on_replica_lost(self, error: Exception | None) -> None:
        upstream, self._upstream = self._upstream, None
        was_reused = upstream is not None and upstream.is_reused
        response, answer = self._response, self._answer
        if self._is_tunnel:
            self._count()
            self._client.cut(hard=False)
        elif answer is not None and answer.ends_by_close and error is None:
            if self._request.minor:
                self._client.send(LAST_CHUNK)
            self._finish()
        elif response is None and not self._pending and upstream is not None and self._may_repeat(upstream, error):
            self._repeat(upstream)
        else:
            if upstream is not None and response is None and not (was_reused or isinstance(error, ReplicaTimeout)):
                self._deps.balancer.failed(upstream.address, is_unreachable=False)
            self._fail(error)

    def _may_repeat(self, upstream: Upstream, error: Exception | None) -> bool:
        """The kept connection was closed as we used it, or a new one by its tunnel. A request without effect and
        body is sent once more; any other one where the tunnel has certainly not taken all of it."""
        request = self._request
        if isinstance(error, ReplicaTimeout) or not (upstream.is_reused or upstream.is_tunnelled):
            return False
        if request.method in _REPEATABLE and request.length == 0:
            return True
        is_kept = upstream.is_tunnelled if self._body is None else self._body.is_kept
        return is_kept and isinstance(error, (ConnectionResetError, BrokenPipeError))

    def _repeat(self, upstream: Upstream) -> None:
        """A tunnel whose far end is refused takes a connection and drops it: that is a refusal the second time."""
        self.is_ready = False
        if upstream.is_reused or not self._has_repeated:
            self._has_repeated = self._has_repeated or not upstream.is_reused
            self._dispatch(may_reuse=False)
        else:
            self._on_not_connected(upstream.address, ConnectionRefusedError())

    def _fail(self, error: Exception | None) -> None:
        """With a status where none was sent yet; else the client's connection is cut, so that it can see it."""
        self._let_go()
        status, text = refusal(
            error, self._run, timeout=self._deps.pool.timeout,
            is_untaken=self._is_untaken, is_body_awaited=self.is_ready and not self._is_request_sent,
        )  # fmt: skip
        self._count(is_error=status >= 500)
        if self._response is None:
            self._refuse(status, text)
        else:
            self._client.cut(hard=self._request.minor == 0 and self._response.length < 0)

    def _finish(self) -> None:
        upstream, response = self._upstream, self._response
        assert response is not None
        self._count(is_error=response.status >= 500)
        self._upstream = None
        if upstream is not None:
            may_stay = self._is_request_sent and not response.is_closing and not self._is_spoilt
            if may_stay and not upstream.transport.is_closing():
                if self._client.is_write_paused:
                    upstream.transport.resume_reading()  # else its end would go unnoticed
                self._deps.pool.give_back(upstream)
            else:
                upstream.abort()
        self._client.on_answered(is_closing=self._is_closing())

    def _let_go(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def _count(self, *, is_error: bool = False) -> None:
        """Once."""
        if self._aim is not None:
            self._aim.end()
        if self._started and self._service is not None:
            tokens = None if self._usage is None else self._usage.tokens()
            self._deps.stats.finish(
                self._service.id, self._started, began=self._began, is_error=is_error, tokens=tokens
            )
            self._started = 0.0

"""One request on its way to a replica, and its answer on the way back: bytes in, bytes out.

No task, no ASGI, no database: callbacks between two connections. A task is made only where something has to be
awaited: an unknown route or token, a new connection to a replica.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Protocol

from dstack.proxy.affinity import BodyStart, prompt_key
from dstack.proxy.aim import Aim
from dstack.proxy.balancing import ByPrefix
from dstack.proxy.chunks import LAST_CHUNK, ChunkedReader, chunk
from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.headers import (
    CHUNKED,
    CORS_LINES,
    UNTIL_CLOSE,
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
from dstack.proxy.repeated import request_tail, response_head
from dstack.proxy.repo import Service
from dstack.proxy.usage import UsageReader
from dstack.proxy.waking import StillAsleep

MAX_RESPONSE_HEAD_BYTES = 262144
MAX_KEPT_BYTES = 65536
"""Of a request's body that can be sent once more."""

log = logging.getLogger(__name__)
_REPEATABLE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))


class BodyTooLarge(Exception):
    """The client sends more than it may; the text is for it."""


class Client(Protocol):
    """The client's connection, as an exchange uses it."""

    def send(self, data: bytes) -> None: ...
    def send_error(self, status: int, detail: str, *extra: bytes) -> None: ...
    def send_empty(self, *lines: bytes) -> None: ...
    def cut(self, *, hard: bool) -> None: ...
    def on_ready(self) -> None: ...
    def on_tunnel(self) -> None: ...
    def on_answered(self, *, is_closing: bool) -> None: ...
    def hold_reading(self, *, is_held: bool) -> None: ...
    @property
    def is_write_paused(self) -> bool: ...


class Exchange:
    """From `proceed` on. The client is let in before: `admission`, or whoever makes requests for a client."""

    __slots__ = (
        "_aim", "_began", "_client", "_deps", "_early", "_has_repeated", "_hop", "_is_request_sent",
        "_is_spoilt", "_is_tunnel", "_is_untaken", "_kept", "_left", "_path", "_pending", "_prefix", "_project",
        "_reader", "_received", "_request", "_request_bytes", "_response", "_run", "_service", "_started",
        "_task", "_upstream", "_usage",
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
        self._response: ResponseHead | None = None
        self._reader: ChunkedReader | None = None
        self._left = 0
        self._pending = b""
        self._is_tunnel = False
        self._received = 0
        """Bytes of a chunked body, where they are limited."""
        self._is_spoilt = False
        """The replica sent more than its answer: the connection can't be used again."""
        self._is_untaken = False
        """The replica takes no more of the request's body now."""
        self._kept: bytearray | None = None
        """What of the body went into a tunnel's new connection; None: nothing, or too much."""
        self._has_repeated = False
        self._started = self._began = 0.0
        """When the request and its answer did, by the clock of the stats."""
        self._usage: UsageReader | None = None
        self._aim: Aim | None = None
        """None: any replica, the first time."""
        self._early: BodyStart | None = None
        """What of the body came before there was a replica."""
        self.is_ready = False
        """The request's body can be passed on."""

    @property
    def service_id(self) -> str:
        return "" if self._service is None else self._service.id

    @property
    def has_begun_answer(self) -> bool:
        return self._response is not None

    # Towards the replica

    def proceed(self, service: Service) -> None:
        """The client may use the service: now, later, or not that often."""
        self._service = service
        limits = service.rate_limits
        if self._request.length > self._deps.max_body_bytes > 0:
            self._refuse(413, self._too_large())
        elif limits and (seconds := self._seconds_to_wait(service)):
            text = f"Service {self._run} takes no more requests of yours now; try again in {seconds} s"
            self._refuse(429, text, b"Retry-After: %d" % seconds)
        elif service.replicas:
            self._forward()
        else:
            self._started = self._deps.stats.start(service.id)
            self._spawn(self._hold(service))

    def _too_large(self) -> str:
        return f"The request's body is larger than {self._deps.max_body_bytes} bytes"

    def _seconds_to_wait(self, service: Service) -> int:
        limits = service.rate_limits
        return self._deps.limiter.seconds_to_wait(service.id, limits, self._path, self._request, self._hop)

    async def _hold(self, service: Service) -> None:
        """Until the service has a replica."""
        try:
            if self._deps.waking is None:
                raise StillAsleep(f"Service {self._run} has no running replica")
            self._service = await self._deps.waking.until_awake(service)
        except StillAsleep as error:
            self._count(is_error=True)
            self._refuse(503, str(error), b"Retry-After: %d" % error.retry_after_seconds)
        else:
            self._forward()

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

    def _forward(self) -> None:
        service = self._service
        assert service is not None
        if not self._started:
            self._started = self._deps.stats.start(service.id)
        if service.balancing is None:
            self._send_head()
            return
        aim = self._aim = Aim(self._deps.balancer, service, self._request)
        if isinstance(service.balancing, ByPrefix) and len(service.replicas) > 1 and self._request.length:
            self._spawn(self._gather(aim, service.balancing.length))
        else:
            self._send_head()

    async def _gather(self, aim: Aim, length: int) -> None:
        """Takes as much of the body as its prompt's beginning needs."""
        if self._request.expects_continue:
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._request = replace(self._request, expects_continue=False, tails={})
        self._early = BodyStart()
        self.is_ready = True
        self._client.on_ready()
        try:
            await asyncio.wait_for(self._early.is_enough.wait(), self._deps.pool.timeout)
        except asyncio.TimeoutError:
            self._fail(ReplicaTimeout())
            return
        aim.key = prompt_key(b"".join(self._early.pieces), length)
        self._send_head()

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
        if self._kept:
            upstream.transport.write(bytes(self._kept))
        elif upstream.is_tunnelled and not upstream.is_reused:
            self._kept = bytearray()
        if self._early is not None:
            self._send_early(upstream)
        self.is_ready = True
        if not self._is_request_sent:
            self._client.on_ready()

    def _send_early(self, upstream: Upstream) -> None:
        early, self._early = self._early, None
        assert early is not None
        is_chunked = self._request.length == CHUNKED
        for payload in early.pieces:
            self._send(upstream, chunk(payload) if is_chunked else payload)
        if is_chunked and self._is_request_sent:
            self._send(upstream, LAST_CHUNK)

    def send_body(self, payload: bytes) -> None:
        """A piece of the request's body, or bytes of a tunnel."""
        upstream = self._upstream
        if not payload or (upstream is None and self._early is None):
            return
        is_chunked = self._request.length == CHUNKED and not self._is_tunnel
        if is_chunked and self._deps.max_body_bytes:
            self._received += len(payload)
            if self._received > self._deps.max_body_bytes:
                self._fail(BodyTooLarge(self._too_large()))
                return
        if upstream is None:
            assert self._early is not None
            self.is_ready = not self._early.add(payload)
            return
        upstream.quiet_ticks = 0
        self._send(upstream, chunk(payload) if is_chunked else payload)

    def end_body(self) -> None:
        self._is_request_sent = True
        if self._early is not None:
            self._early.is_enough.set()
        elif self._request.length == CHUNKED and self._upstream is not None:
            self._send(self._upstream, LAST_CHUNK)

    def _send(self, upstream: Upstream, data: bytes) -> None:
        """The beginning of what goes into a new connection of a tunnel is kept: it may lead to nobody."""
        upstream.transport.write(data)
        if self._kept is not None:
            self._kept += data
            if len(self._kept) > MAX_KEPT_BYTES:
                self._kept = None

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
            self._read(data)
        except BadMessage as error:
            self._fail(error)

    def _read(self, data: bytes) -> None:
        if self._is_tunnel:
            self._client.send(data)
            return
        if self._response is None:
            self._read_heads(data)
            return
        if self._left == CHUNKED:
            self._send_chunks(data)
        elif self._left == UNTIL_CLOSE:
            self._note(data)
            self._client.send(chunk(data) if self._request.minor else data)
        else:
            self._send_counted(data)

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
        is_unbounded = left < 0
        head = response_head(
            response,
            is_chunked=is_unbounded and request.minor == 1,
            is_closing=self._is_closing(),
            minor=request.minor,
        )
        self._left = left
        if left == CHUNKED:
            self._reader = ChunkedReader()
        if left < 0:
            self._client.send(head)
            if body:
                self._read(body)
            return
        if len(body) > left:
            body = body[:left]
            self._is_spoilt = True
        self._left = left - len(body)
        self._note(body)
        self._client.send(head + body if body else head)
        if not self._left:
            self._finish()

    def _is_closing(self) -> bool:
        response, request = self._response, self._request
        assert response is not None
        is_delimited_by_close = request.minor == 0 and response.length < 0 and has_body(response, request.method)
        return (
            request.is_closing or is_delimited_by_close or (request.expects_continue and not self._is_request_sent)
        )

    def _note(self, payload: bytes) -> None:
        """Reads along, where an answer may tell of tokens."""
        if self._usage is not None:
            self._usage.feed(payload)

    def _send_counted(self, data: bytes) -> None:
        if len(data) > self._left:
            data = data[: self._left]
            self._is_spoilt = True
        self._left -= len(data)
        self._note(data)
        self._client.send(data)
        if not self._left:
            self._finish()

    def _send_chunks(self, data: bytes) -> None:
        reader = self._reader
        assert reader is not None
        payload = reader.feed(data)
        is_framed = self._request.minor == 1
        out = b""
        if payload:
            self._note(payload)
            out = chunk(payload) if is_framed else payload
        if reader.is_finished:
            self._is_spoilt = bool(reader.rest)
            if is_framed:
                out += LAST_CHUNK
        if out:
            self._client.send(out)
        if reader.is_finished:
            self._finish()

    def _switch(self, response: ResponseHead, rest: bytes) -> None:
        if self._request.upgrade != b"websocket" or response.upgrade is None:
            raise BadMessage("The replica switches to a protocol that was not asked for")
        self._response = response
        self._is_tunnel = True
        self._kept = None
        head = build_response_head(response, is_chunked=False, is_closing=False, minor=1)
        self._client.send(head + rest)
        self._client.on_tunnel()

    def on_replica_lost(self, error: Exception | None) -> None:
        upstream, self._upstream = self._upstream, None
        was_reused = upstream is not None and upstream.is_reused
        response = self._response
        if self._is_tunnel:
            self._count()
            self._client.cut(hard=False)
        elif response is not None and self._left == UNTIL_CLOSE and error is None:
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
        return self._kept is not None and isinstance(error, (ConnectionResetError, BrokenPipeError))

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
        is_clients = isinstance(error, BodyTooLarge) or (
            isinstance(error, ReplicaTimeout) and self.is_ready and not self._is_request_sent
        )
        self._count(is_error=not is_clients)
        if self._response is not None:
            is_delimited_by_close = self._request.minor == 0 and self._response.length < 0
            self._client.cut(hard=is_delimited_by_close)
        elif isinstance(error, BodyTooLarge):
            self._refuse(413, str(error))
        elif self._is_missing_body(error):
            self._refuse(408, "The request's body did not arrive in time")
        elif isinstance(error, ReplicaTimeout):
            lacks = "take the request" if self._is_untaken else "answer"
            text = f"Service {self._run} did not {lacks} within {self._deps.pool.timeout:g} s"
            self._refuse(504, text)
        else:
            reason = str(error) if isinstance(error, BadMessage) else "its replica can't be reached or went away"
            self._refuse(502, f"Service {self._run}: {reason}")

    def _is_missing_body(self, error: Exception | None) -> bool:
        """It is the client that keeps the replica waiting, not the other way round."""
        has_more = self.is_ready and not self._is_request_sent and not self._is_untaken
        return has_more and isinstance(error, ReplicaTimeout)

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

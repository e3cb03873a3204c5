"""What a client's connection speaks: services go to `forward`, everything else to the HTTP server's ASGI side.

Both alternate on one keep-alive connection, pipelined requests are answered in order, and every request, whoever
answers it, passes the same strict reading of its head and of its body's framing.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from enum import IntEnum
from typing import Any
from urllib.parse import unquote

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from dstack.proxy.admission import AdmittedExchange
from dstack.proxy.answers import answer
from dstack.proxy.chunks import ChunkedReader
from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.headers import CHUNKED, BadMessage, Hop, RequestHead, check_partial_head
from dstack.proxy.repeated import RequestHeads

SERVICES = b"/proxy/services/"
CUT = "dstack.cut"
"""ASGI extension: `cut(hard=…)` ends the connection, so that an answer is seen to be half."""
DISCARD_TIMEOUT = 5.0
"""Seconds in which the rest of a refused request's body may still come."""

_TARGET = re.compile(rb"(/proxy/services/([^/?]+)/([^/?]+))([/?].*)?", re.DOTALL)
_NO_WAIT = struct.pack("ii", 1, 0)


class _State(IntEnum):
    IDLE = 0
    ASGI = 1
    SERVICE = 2
    DISCARDING = 3
    TUNNEL = 4
    CLOSING = 5


def make_http_protocol(deps: ProxyDependencies) -> type[asyncio.Protocol]:
    """The class for `uvicorn.Config(http=…)`."""

    class BoundProtocol(ProxyHttpProtocol):
        dependencies = deps

    return BoundProtocol


class ProxyHttpProtocol(HttpToolsProtocol):
    dependencies: ProxyDependencies

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._state = _State.IDLE
        self._buffer = b""
        self._left = 0
        """Of the request's body, in bytes; 0 when all of it came."""
        self._reader: ChunkedReader | None = None
        self._exchange: AdmittedExchange | None = None
        self._request: RequestHead | None = None
        self._is_answered = False
        self._is_last = False
        self._is_pumping = False
        self._is_held = False
        self._quiet_since = 0.0
        self._untaken = 0
        """Bytes that the client had still to take when its closing connection was last looked at."""
        self._quiet_timer: asyncio.TimerHandle | None = None
        self._hop = Hop(b"", b"http", False)
        self._heads = RequestHeads()

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the class it extends
        super().connection_made(transport)
        address = self.client[0] if self.client is not None else ""
        # Behind a Unix socket there is no address; "unknown" is what RFC 7239 calls that.
        self._hop = Hop(
            address.encode() or b"unknown", (self.scheme or "http").encode(), self.dependencies.is_trusted(address)
        )
        self._watch_quiet()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._quiet_timer is not None:
            self._quiet_timer.cancel()
            self._quiet_timer = None
        exchange, self._exchange = self._exchange, None
        self._state = _State.CLOSING
        if exchange is not None:
            exchange.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._exchange is not None:
            self._exchange.on_client_writable(is_writable=False)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._exchange is not None:
            self._exchange.on_client_writable(is_writable=True)

    def shutdown(self) -> None:
        """Of the server: this connection ends with the request at hand."""
        self._is_last = True
        if self._state is _State.IDLE:
            self._close()
        elif self._state is _State.ASGI:
            super().shutdown()

    def _close(self) -> None:
        self._state = _State.CLOSING
        self._buffer = b""
        self.transport.close()

    # Quiet connections: one timer, looked at when it fires, instead of one per request

    def _watch_quiet(self) -> None:
        self._quiet_since = self.loop.time()
        self._quiet_timer = self.loop.call_later(self.timeout_keep_alive, self._check_quiet)

    def _check_quiet(self) -> None:
        quiet_seconds = self.loop.time() - self._quiet_since
        limit = self._quiet_limit()
        if limit is not None and quiet_seconds >= limit:
            self._end_quiet()
            limit, quiet_seconds = self._quiet_limit(), 0.0
        wait = self.timeout_keep_alive if limit is None else limit - quiet_seconds
        self._quiet_timer = self.loop.call_later(max(wait, 0.01), self._check_quiet)

    def _quiet_limit(self) -> float | None:
        """In seconds; None while a request is at work."""
        if self._state is _State.IDLE:
            return self.dependencies.client_timeout if self._buffer else float(self.timeout_keep_alive)
        if self._state is _State.CLOSING:
            return self.dependencies.client_timeout
        return DISCARD_TIMEOUT if self._state is _State.DISCARDING else None

    def _end_quiet(self) -> None:
        """A client that takes what is left for it may take its time; one that takes nothing is let go of."""
        self._quiet_since = self.loop.time()
        if self._state is _State.IDLE and self._buffer:
            self._refuse(BadMessage("The request's head did not arrive in time", 408))
        elif self._state is not _State.CLOSING:
            self._close()
        elif (untaken := self.transport.get_write_buffer_size()) != self._untaken:
            self._untaken = untaken
        else:
            self.transport.abort()

    # Reading

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._state is _State.TUNNEL:
            if self._exchange is not None:
                self._exchange.send_body(data)
            return
        if self._state is _State.CLOSING:
            return
        if self._buffer:
            self._buffer += data
        else:
            self._buffer = data
            if self._state is _State.IDLE:
                self._quiet_since = self.loop.time()
        self._pump()

    def _pump(self) -> None:
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while self._buffer and self._step():
                pass
        except BadMessage as error:
            self._refuse(error)
        finally:
            self._is_pumping = False

    def _step(self) -> bool:
        """Consumes one element of the buffer; False where it has to wait."""
        if self._state is _State.IDLE:
            return self._begin_request()
        if self._state in (_State.CLOSING, _State.TUNNEL):
            return False
        waits_for_replica = self._exchange is not None and not self._exchange.is_ready and not self._is_answered
        if self._left == 0 or waits_for_replica:
            self.flow.pause_reading()
            return False
        self._take_body()
        return True

    def _begin_request(self) -> bool:
        if self._buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: an empty line before a request is skipped
            self._buffer = self._buffer[2:]
            return True
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            check_partial_head(self._buffer)
            return False
        head = self._buffer[:end]
        request = self._heads.read(head)
        self._buffer = self._buffer[end:]
        self._request = request
        self._is_answered = False
        self._left = request.length
        self._reader = ChunkedReader() if request.length == CHUNKED else None
        self._is_last = self._is_last or request.is_closing
        match = _TARGET.fullmatch(request.target) if request.target.startswith(SERVICES) else None
        if match is None:
            self._hand_to_asgi(head, request)
        else:
            self._begin_service(request, match)
        return True

    def _take_body(self) -> None:
        data = self._buffer
        if self._reader is not None:
            payload = self._reader.feed(data)
            is_finished = self._reader.is_finished
            self._buffer = self._reader.rest
            raw = data[: len(data) - len(self._buffer)]
            self._left = 0 if is_finished else CHUNKED
        else:
            raw = payload = data if len(data) <= self._left else data[: self._left]
            self._buffer = data[len(raw) :]
            self._left -= len(raw)
        if self._state is _State.ASGI:
            super().data_received(raw)
        elif (exchange := self._exchange) is not None:
            exchange.send_body(payload)
            if self._left == 0:
                exchange.end_body()
        if self._left == 0 and self._is_answered:
            self._next_request()

    # ASGI

    def _hand_to_asgi(self, head: bytes, request: RequestHead) -> None:
        self._state = _State.ASGI
        super().data_received(head)
        self.scope.setdefault("extensions", {})[CUT] = self.cut  # type: ignore[assignment] # a key of our own
        if request.upgrade is not None and self.transport.get_protocol() is not self:
            self._state = _State.CLOSING  # the connection is a WebSocket's now
            if self._quiet_timer is not None:
                self._quiet_timer.cancel()
                self._quiet_timer = None
            rest, self._buffer = self._buffer, b""
            if rest:
                self.transport.get_protocol().data_received(rest)  # type: ignore[attr-defined] # a Protocol

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self._finish_answer(is_closing=self.transport.is_closing())

    # Services

    def _begin_service(self, request: RequestHead, match: re.Match[bytes]) -> None:
        self._state = _State.SERVICE
        prefix, project, run, target = match.groups()
        if request.method in (b"CONNECT", b"TRACE") or (request.method == b"OPTIONS" and target is None):
            self.send_error(405, "Method Not Allowed")
        elif target is None or target.startswith(b"?"):
            self._redirect(prefix + b"/" + (target or b""))
        else:
            route = (_text(project), _text(run), prefix, target)
            self._exchange = AdmittedExchange(self.dependencies, self, request, self._hop, route)
            self._exchange.start()

    def _redirect(self, location: bytes) -> None:
        self._answer(308, "The service's path ends with a slash", (b"Location: " + location,))

    def send_error(self, status: int, detail: str, *extra: bytes) -> None:
        """`extra` are further field lines."""
        self._answer(status, detail, extra)

    def send_empty(self, *lines: bytes) -> None:
        """204 with these field lines."""
        self._answer(204, None, lines)

    def _answer(self, status: int, detail: str | None, extra: tuple[bytes, ...]) -> None:
        request = self._request
        assert request is not None
        # Whoever waits for "100 Continue" may or may not send its body now: only closing is unambiguous.
        is_closing = self._is_last or (request.expects_continue and self._left != 0)
        self.transport.write(answer(status, detail, method=request.method, is_closing=is_closing, extra=extra))
        self.on_answered(is_closing=is_closing)

    def _refuse(self, error: BadMessage) -> None:
        """A request that can't be read: answered where nothing was answered yet, and the connection is closed."""
        exchange, self._exchange = self._exchange, None
        has_begun_answer = self._is_answered
        if exchange is not None:
            has_begun_answer = exchange.has_begun_answer
            exchange.cancel()
        if self._state is _State.IDLE or (self._state is _State.SERVICE and not has_begun_answer):
            self.transport.write(answer(error.status, str(error), is_closing=True))
        self._close()

    # What an exchange asks of its client

    @property
    def is_write_paused(self) -> bool:
        return self.flow.write_paused

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def cut(self, *, hard: bool) -> None:
        """`hard`: by a reset, for an answer whose end is the connection's."""
        self._exchange = None
        self._state = _State.CLOSING
        if not hard:
            self.transport.close()
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_WAIT)
        self.transport.abort()

    def on_ready(self) -> None:
        if not self._is_held:
            self.flow.resume_reading()
        self._pump()

    def on_tunnel(self) -> None:
        self._state = _State.TUNNEL
        early, self._buffer = self._buffer, b""
        if early and self._exchange is not None:
            self._exchange.send_body(early)
        self.flow.resume_reading()

    def hold_reading(self, *, is_held: bool) -> None:
        self._is_held = is_held
        if self.transport.is_closing():
            return
        if is_held:
            self.flow.pause_reading()
        else:
            self.flow.resume_reading()
            self._pump()

    def on_answered(self, *, is_closing: bool) -> None:
        self._exchange = None
        self._is_held = False
        self.server_state.total_requests += 1
        self._finish_answer(is_closing=is_closing or self._is_last)

    def _finish_answer(self, *, is_closing: bool) -> None:
        self._is_answered = True
        self._quiet_since = self.loop.time()
        if is_closing:
            self._close()
        elif self._left == 0:
            self._next_request()
        else:
            if self._state is _State.SERVICE:
                self._state = _State.DISCARDING
            self.flow.resume_reading()
            self._pump()

    def _next_request(self) -> None:
        self._request = None
        if self._is_last:
            self._close()
            return
        self._state = _State.IDLE
        self.flow.resume_reading()
        if self._buffer:
            self._pump()


def _text(name: bytes) -> str:
    return unquote(name.decode("utf-8", "replace")) if b"%" in name else name.decode("utf-8", "replace")

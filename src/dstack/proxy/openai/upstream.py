"""Calling the service behind a model, in the name of a client that was let in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.headers import Hop, RequestHead, parse_request_head, parse_response_head
from dstack.proxy.openai.errors import ApiError
from dstack.proxy.repo import Model
from dstack.proxy.waiting import WaitingExchange

MAX_WAITING_BYTES = 256 * 1024
"""Of an answer that its reader does not take: the replica is read no further."""
_NOT_PASSED = frozenset((b"content-length", b"transfer-encoding", b"authorization", b"accept-encoding", b"expect"))
_ANSWER_OWN = frozenset((b"date", b"server"))
"""Fields that the HTTP server sets itself."""

Fields = Sequence[tuple[bytes, bytes]]
"""Names in lower case, and values."""


class AnswerCut(Exception):
    """The replica went away in the middle of its answer."""


@dataclass(frozen=True)
class UpstreamRequest:
    method: bytes
    target: bytes
    """Path and query, relative to the service."""
    headers: Fields
    """As the client sent them; those that are not for the replica are left out."""
    body: bytes
    hop: Hop
    """The client's side."""


class UpstreamAnswer(Protocol):
    status: int
    headers: Fields

    def pieces(self) -> AsyncIterator[bytes]:
        """Of the body, as they arrive. Raises `AnswerCut`."""
        ...


class OpenUpstream(Protocol):
    def __call__(self, model: Model, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """The answer, once its head is there; leaving the block ends what is left of it.

        Raises `ApiError` where there is none: no replica, too many requests, ….
        """
        ...


class ServiceUpstream:
    """An `OpenUpstream` on the path of `/proxy/services`: its limits, waking, balancing, counting."""

    def __init__(self, deps: ProxyDependencies) -> None:
        self._deps = deps

    @asynccontextmanager
    async def __call__(self, model: Model, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        service = model.service
        prefix = f"/proxy/services/{service.project}/{service.run}".encode()
        head = _request_head(request, model.host)
        receiver = _Receiver(request.body)
        route = (service.project, service.run, prefix, request.target)
        exchange = WaitingExchange(self._deps, receiver, head, request.hop, route)
        receiver.exchange = exchange
        try:
            exchange.proceed(service)
            await receiver.head_arrived()
            yield receiver
        finally:
            exchange.cancel()


def _request_head(request: UpstreamRequest, host: bytes | None) -> RequestHead:
    """By the rules for any client's head. As HTTP/1.0: bodies then come without framing."""
    fields = [(name, value) for name, value in request.headers if name not in _NOT_PASSED]
    if host is not None:
        fields = [(b"host", host), *(field for field in fields if field[0] != b"host")]
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    head = parse_request_head(b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method, request.target, lines))
    return replace(head, minor=0, length=len(request.body), upgrade=None)


class _Receiver:
    """What an exchange takes for its client."""

    def __init__(self, body: bytes) -> None:
        self.exchange: WaitingExchange | None = None
        self.status = 0
        self.headers: Fields = ()
        self._body = body
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_over = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    async def head_arrived(self) -> None:
        while not self.status and self._error is None:
            await self._next_news()
        if not self.status and self._error is not None:
            raise self._error

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            while self._pieces:
                yield self._take()
            if self._error is not None:
                raise self._error
            if self._is_over:
                return
            await self._next_news()

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _take(self) -> bytes:
        was_paused = self.is_write_paused
        piece = self._pieces.popleft()
        self._waiting_bytes -= len(piece)
        if was_paused and not self.is_write_paused and self.exchange is not None:
            self.exchange.on_client_writable(is_writable=True)
        return piece

    # As the client of an exchange

    @property
    def is_write_paused(self) -> bool:
        return self._waiting_bytes > MAX_WAITING_BYTES

    def send(self, data: bytes) -> None:
        if not self.status:
            end = data.index(b"\r\n\r\n") + 4  # heads are sent whole
            response = parse_response_head(data[:end])
            self.status = response.status
            self.headers = list(_fields(response.lines))
            if response.has_length:
                self.headers.append((b"content-length", b"%d" % response.length))
            data = data[end:]
        if data:
            was_paused = self.is_write_paused
            self._pieces.append(data)
            self._waiting_bytes += len(data)
            if self.is_write_paused and not was_paused and self.exchange is not None:
                self.exchange.on_client_writable(is_writable=False)
        self._news.set()

    def send_error(self, status: int, detail: str, *extra: bytes) -> None:
        self._error = ApiError(status, detail, headers=list(_fields(extra)))
        self._news.set()

    def send_empty(self, *_lines: bytes) -> None:
        """Preflights are not sent to services from here."""
        self.send_error(502, "The service answered as to a browser's preflight")

    def cut(self, *, hard: bool) -> None:
        self._error = AnswerCut("the replica went away in the middle of its answer")
        self._news.set()

    def on_ready(self) -> None:
        assert self.exchange is not None
        body, self._body = self._body, b""
        self.exchange.send_body(body)
        self.exchange.end_body()

    def on_tunnel(self) -> None:
        self.send_error(502, "The service switched to another protocol, which was not asked for")

    def on_answered(self, *, is_closing: bool) -> None:
        self._is_over = True
        self._news.set()

    def hold_reading(self, *, is_held: bool) -> None:
        """The body is here already, and given as a whole."""


def _fields(lines: Iterable[bytes]) -> Iterable[tuple[bytes, bytes]]:
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() not in _ANSWER_OWN:
            yield name.lower(), value.strip(b" \t")

"""The body of a request on its way to a replica: limited, framed, held until there is one, kept for a retry."""

from __future__ import annotations

from dstack.proxy.affinity import BodyStart
from dstack.proxy.chunks import LAST_CHUNK, chunk
from dstack.proxy.headers import CHUNKED
from dstack.proxy.pool import Upstream

MAX_KEPT_BYTES = 65536
"""Of a request's body that can be sent once more."""


class BodyTooLarge(Exception):
    """The client sends more than it may; the text is for it."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request's body is larger than {limit} bytes")


class RequestBody:
    """Made for requests that have a body."""

    __slots__ = ("_early", "_is_chunked", "_kept", "_limit", "_received")

    def __init__(self, length: int, limit: int) -> None:
        """`length` as in the request's head; `limit` in bytes, 0: none."""
        self._is_chunked = length == CHUNKED
        self._limit = limit if self._is_chunked else 0
        self._received = 0
        self._early: BodyStart | None = None
        self._kept: bytearray | None = None

    @property
    def is_held(self) -> bool:
        """What comes is held until there is a replica."""
        return self._early is not None

    @property
    def is_kept(self) -> bool:
        """All of what was sent can be sent once more."""
        return self._kept is not None

    def begin_holding(self) -> BodyStart:
        self._early = BodyStart()
        return self._early

    def hold(self, payload: bytes) -> bool:
        """Whether more may come at once. Raises `BodyTooLarge`."""
        assert self._early is not None
        self._check(payload)
        return not self._early.add(payload)

    def send(self, upstream: Upstream, payload: bytes) -> None:
        """`payload` must not be empty. Raises `BodyTooLarge`."""
        self._check(payload)
        self._write(upstream, payload)

    def send_what_came(self, upstream: Upstream, *, is_all: bool) -> None:
        """To a replica's connection, before anything else of the body."""
        if self._kept:
            upstream.transport.write(bytes(self._kept))
        elif upstream.is_tunnelled and not upstream.is_reused:
            self._kept = bytearray()
        early, self._early = self._early, None
        if early is None:
            return
        for payload in early.pieces:
            self._write(upstream, payload)
        if is_all:
            self.end(upstream)

    def end(self, upstream: Upstream | None) -> None:
        """All of it has come."""
        if self._early is not None:
            self._early.is_enough.set()
        elif self._is_chunked and upstream is not None:
            self._send(upstream, LAST_CHUNK)

    def _check(self, payload: bytes) -> None:
        """Of a body that is not chunked the length was checked before."""
        if self._limit:
            self._received += len(payload)
            if self._received > self._limit:
                raise BodyTooLarge(self._limit)

    def _write(self, upstream: Upstream, payload: bytes) -> None:
        upstream.quiet_ticks = 0
        self._send(upstream, chunk(payload) if self._is_chunked else payload)

    def _send(self, upstream: Upstream, data: bytes) -> None:
        """The beginning of what goes into a new connection of a tunnel is kept: it may lead to nobody."""
        upstream.transport.write(data)
        if self._kept is not None:
            self._kept += data
            if len(self._kept) > MAX_KEPT_BYTES:
                self._kept = None

"""Bytes through descriptors that do not block, with nothing kept in memory but the piece under way.

That is the flow control of sessions and connections: whoever is slow to read makes the other side wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from typing import Any, Callable, Optional

PIECE_BYTES = 256 * 1024


class Stream:
    """Two descriptors, or one for both directions; they are closed with it. `early`: what was read before."""

    def __init__(self, reading: int, writing: int, early: bytes = b"") -> None:
        self.reading = reading
        self.writing = writing
        self._early = early
        for descriptor in {reading, writing}:
            os.set_blocking(descriptor, False)

    @classmethod
    def of_socket(cls, connected: socket.socket, early: bytes = b"") -> Stream:
        """Takes the socket over."""
        descriptor = connected.detach()
        return cls(descriptor, descriptor, early)

    async def read(self, size: int = PIECE_BYTES, until: Optional[asyncio.Future[Any]] = None) -> bytes:
        """What is there, after waiting for something to be; empty at the end.

        With `until`, also empty when that is done and nothing more is there. Raises OSError when it broke.
        """
        if self._early:
            data, self._early = self._early[:size], self._early[size:]
            return data
        while True:
            is_over = until is not None and until.done()
            try:
                return os.read(self.reading, size)
            except BlockingIOError:
                if is_over:
                    return b""
            except OSError as error:
                if error.errno == errno.EIO:  # how a terminal says that its other side was closed
                    return b""
                raise
            await _ready(self.reading, "reader", until)

    async def write(self, data: bytes) -> None:
        """Returns once the system has taken all of it. Raises OSError when nobody reads any more."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.writing, left) :]
            except BlockingIOError:
                await _ready(self.writing, "writer", None)

    def end_writing(self) -> None:
        """The other side reads the end, and may still write."""
        if self.writing != self.reading:
            os.close(self.writing)
            self.writing = self.reading
            return
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.writing)) as connected:
            connected.shutdown(socket.SHUT_WR)  # one that is gone needs no telling

    async def hung_up(self) -> None:
        """Returns once the other side of the socket is gone altogether, even with data of it still to be read."""
        with select.epoll() as watch:
            watch.register(self.reading, 0)
            await _ready(watch.fileno(), "reader", None)

    def close(self) -> None:
        for descriptor in {self.reading, self.writing}:
            os.close(descriptor)


async def _ready(descriptor: int, direction: str, until: Optional[asyncio.Future[Any]]) -> None:
    """Waits until the descriptor can be read or written, or `until` is done."""
    loop = asyncio.get_running_loop()
    add: Callable[..., None] = getattr(loop, f"add_{direction}")
    ready: asyncio.Future[None] = loop.create_future()
    add(descriptor, _done, ready)
    if until is not None:
        until.add_done_callback(wake := lambda _: _done(ready))
    try:
        await ready
    finally:
        getattr(loop, f"remove_{direction}")(descriptor)
        if until is not None:
            until.remove_done_callback(wake)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def copy(source: Stream, target: Stream) -> None:
    """Everything from `source`, then the end of it. Raises OSError when either breaks."""
    while True:
        data = await source.read()
        if not data:
            target.end_writing()
            return
        await target.write(data)
        await asyncio.sleep(0)  # others have their turn, however quick both sides are


async def join(one: Stream, other: Stream) -> None:
    """Both directions, each until its own end; returns when both have ended or the connection broke."""
    ways = [asyncio.ensure_future(copy(one, other)), asyncio.ensure_future(copy(other, one))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

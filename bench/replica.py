"""A replica that streams, takes large bodies and keeps WebSockets open, in one process.

    python -m bench.replica PORT

`GET …/stream?count=N&every=S` sends N server-sent events, one each S seconds, each with the time it was sent;
`POST …` answers with how many bytes of a body came; a WebSocket is opened, and nothing is said on it.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

from dstack.proxy.open_files import allow_many_open_files

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
"""What a WebSocket is opened with is not looked at by a proxy, so nothing is computed here."""


class Replica(asyncio.Protocol):
    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._length = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport = cast(asyncio.Transport, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._take(len(data))
            return
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        self._head = b""
        if b"websocket" in head:
            self._transport.write(SWITCH)
        elif wanted := re.search(rb"/stream\?count=(\d+)&every=([\d.]+)", head):
            self._transport.write(HEAD)
            self._stream(int(wanted[1]), float(wanted[2]), asyncio.get_running_loop().time())
        elif length := re.search(rb"content-length: *(\d+)", head, re.IGNORECASE):
            self._left = self._length = int(length[1])
            self._take(len(body))

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left == 0:
            text = b"%d" % self._length
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))

    def _stream(self, left: int, every: float, due: float) -> None:
        event = b"data: %.6f\n\n" % time.monotonic()
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        if left > 1:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(due + every, self._stream, left - 1, every, due + every)
        else:
            self._transport.write(b"0\r\n\r\n")


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Replica, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    allow_many_open_files()
    uvloop.run(serve(int(sys.argv[1])))

"""Many connections at once from one process: event streams that are read to their end, WebSockets that are held.

    python -m bench.clients streams PORT PATH TOKEN CONNECTIONS AT_ONCE EVENTS
    python -m bench.clients sockets PORT PATH TOKEN CONNECTIONS AT_ONCE

At most AT_ONCE connections wait for the first byte of an answer at a time.
`streams` prints one JSON object when all have ended; `sockets` one when all are open, and holds them until its
standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

from dstack.proxy.open_files import allow_many_open_files


@dataclass
class Stream(asyncio.Protocol):
    """One answer, read to its end."""

    request: bytes
    started: float = field(default_factory=time.monotonic)
    first_byte: float = 0.0
    """Seconds from the request to the first event."""
    delays: list[float] = field(default_factory=list)
    """Of each event, in seconds."""
    rest: bytes = b""
    is_whole: bool = False
    last_event: float = 0.0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.started = time.monotonic()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.rest += data
        events = re.findall(rb"data: ([\d.]+)\n\n", self.rest)
        if events:
            if not self.delays:
                self.first_byte = now - self.started
                self.opened.set()
            self.delays += [now - float(sent) for sent in events]
            self.last_event = now
            self.rest = self.rest[self.rest.rindex(b"\n\n") + 2 :]
        if self.rest.endswith(b"0\r\n\r\n") and self.delays:
            self.is_whole = True
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.opened.set()
        self.ended.set()


@dataclass
class Socket(asyncio.Protocol):
    """A WebSocket on which nothing is said."""

    request: bytes
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    is_open: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self.request)

    def data_received(self, data: bytes) -> None:
        self.is_open = data.startswith(b"HTTP/1.1 101 ")
        self.opened.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self.opened.set()


async def open_all(kind: type[Any], port: int, request: bytes, count: int, at_once: int) -> list[Any]:
    """`count` connections, each of them answered."""
    turns = asyncio.Semaphore(at_once)

    async def open_one() -> Any:
        async with turns:
            _, protocol = await asyncio.get_running_loop().create_connection(
                lambda: kind(request), "127.0.0.1", port
            )
            await protocol.opened.wait()
            return protocol

    return list(await asyncio.gather(*(open_one() for _ in range(count))))


async def read_streams(port: int, request: bytes, count: int, at_once: int, events: int) -> dict[str, Any]:
    streams: list[Stream] = await open_all(Stream, port, request, count, at_once)
    for stream in streams:
        await stream.ended.wait()
    delays = sorted(delay for stream in streams for delay in stream.delays)
    first = sorted(stream.first_byte for stream in streams)
    seconds = max(stream.last_event for stream in streams) - min(stream.started for stream in streams)
    return {
        "whole": sum(stream.is_whole and len(stream.delays) == events for stream in streams),
        "events": len(delays),
        "seconds": seconds,
        "first_ms": first[len(first) // 2] * 1000,
        "delay_p50_ms": delays[len(delays) // 2] * 1000,
        "delay_p99_ms": delays[len(delays) * 99 // 100] * 1000,
    }


async def hold_sockets(port: int, request: bytes, count: int, at_once: int) -> None:
    sockets: list[Socket] = await open_all(Socket, port, request, count, at_once)
    print(json.dumps({"open": sum(socket.is_open for socket in sockets)}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    kind, port, path, token = sys.argv[1:5]
    counts = [int(count) for count in sys.argv[5:]]
    fields = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
    if kind == "streams":
        request = f"{fields}\r\n".encode()
        print(json.dumps(uvloop.run(read_streams(int(port), request, *counts))))
    else:
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        request = f"{fields}{upgrade}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        uvloop.run(hold_sockets(int(port), request, *counts))


if __name__ == "__main__":
    allow_many_open_files()
    main()

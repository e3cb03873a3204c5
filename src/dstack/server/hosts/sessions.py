"""Upgraded calls of the agent protocol: a program beside a task, and connections into its network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol, cast

from dstack.agent.protocol import (
    EXIT,
    INPUT,
    INPUT_END,
    MAX_FRAME_BYTES,
    RESIZE,
    SESSION_HEADER,
    SIGNAL,
    UPGRADE_PROTOCOL,
    ExecExit,
    encode_session_frame,
)
from dstack.core.errors import AgentError, Unreachable

READ_BYTES = 256 * 1024
MAX_HEAD_BYTES = 32 * 1024


class Reader(Protocol):
    """What a stream is read from: `asyncio.StreamReader` and asyncssh's alike."""

    async def read(self, n: int) -> bytes: ...


class Writer(Protocol):
    """What a stream is written to: `asyncio.StreamWriter` and asyncssh's alike."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...


class Output(NamedTuple):
    """`kind` is `OUTPUT` or `ERROR_OUTPUT`."""

    kind: int
    data: bytes


def upgrade_request(path: str, body: dict[str, Any]) -> bytes:
    """The request that turns a connection into a stream."""
    data = json.dumps(body).encode()
    lines = (f"POST {path} HTTP/1.1", "Host: agent", "Connection: Upgrade", f"Upgrade: {UPGRADE_PROTOCOL}")
    return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data


class ExecSession:
    """A program that runs beside a task. One task may read it while another writes; `close` hangs it up.

    Every method but `close` raises Unreachable when the connection to the agent has broken.
    """

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self.exit: ExecExit | None = None
        """Known once `output` has ended by itself."""

    async def send_input(self, data: bytes) -> None:
        """Waits while the program is slow to read."""
        for start in range(0, len(data), MAX_FRAME_BYTES):
            await self._send(INPUT, data[start : start + MAX_FRAME_BYTES])

    async def end_input(self) -> None:
        """There is no more input; without a terminal the program reads its end."""
        await self._send(INPUT_END)

    async def resize(self, columns: int, rows: int) -> None:
        """Sets the size of the terminal."""
        await self._send(RESIZE, json.dumps({"columns": columns, "rows": rows}).encode())

    async def send_signal(self, name: str) -> None:
        """`name` is without SIG, as in RFC 4254 section 6.9."""
        await self._send(SIGNAL, name.encode())

    async def _send(self, kind: int, payload: bytes = b"") -> None:
        try:
            self._writer.write(encode_session_frame(kind, payload))
            await self._writer.drain()
        except OSError as error:
            raise Unreachable("The connection to the agent broke", detail=f"exec: {error}") from error

    async def output(self) -> AsyncIterator[Output]:
        """What the program writes, in pieces of at most 32 KiB, until it has ended; `exit` is set then."""
        rest = b""
        while True:
            data = rest + await self._read()
            position = 0
            while position + SESSION_HEADER.size <= len(data):
                kind, length = SESSION_HEADER.unpack_from(data, position)
                start, end = position + SESSION_HEADER.size, position + SESSION_HEADER.size + length
                if end > len(data):
                    break
                if kind == EXIT:
                    self.exit = ExecExit.from_json(json.loads(data[start:end]))
                    return
                yield Output(kind, data[start:end])
                position = end
            rest = data[position:]

    async def _read(self) -> bytes:
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as error:
            raise Unreachable("The connection to the agent broke", detail=f"exec: {error}") from error
        if not data:
            raise Unreachable("The agent ended the session", detail="exec: no exit was told")
        return data

    def close(self) -> None:
        """Hangs up: a program that still runs gets SIGHUP."""
        self._writer.close()


class Handshake(asyncio.Protocol):
    """Asks for an upgrade; `answer` becomes status and body of the answer.

    After a 101 reading is paused, so that nothing is lost before another protocol takes over by `hand_over`.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found and len(self._data) > MAX_HEAD_BYTES:
            self._fail(AgentError("The agent gave an answer that is too long"))
        elif found and not self.answer.done():
            self._answered(head, rest)

    def _answered(self, head: bytes, rest: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        status = first.split(" ")[1] if first.startswith("HTTP/1.") and " " in first else ""
        if not status.isdigit():
            self._fail(AgentError("The agent gave an answer that is not HTTP", detail=first[:200]))
            return
        pairs = (line.lower().partition(":") for line in lines)
        length = next((int(value) for name, _, value in pairs if name == "content-length"), 0)
        if status == "101":
            assert self._transport
            self._transport.pause_reading()
            self._data = rest
            self.answer.set_result((101, b""))
        elif len(rest) >= length:
            self.answer.set_result((int(status), rest[:length]))

    def _fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error if isinstance(error, OSError) else ConnectionResetError("closed before the answer"))

    def close(self) -> None:
        """Gives up."""
        if self._transport:
            self._transport.close()

    def hand_over(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Gives the connection to `protocol`, with what has come since the answer."""
        assert self._transport
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._data:
            protocol.data_received(self._data)
        self._transport.resume_reading()
        return self._transport

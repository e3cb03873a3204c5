"""Typed calls of the agent protocol over any stream: a Unix socket, or a channel of an SSH connection.

Short calls share connections that are kept open; each stream has one of its own. A call that fails because a kept
connection was closed meanwhile is made again once, as every call of the protocol may be repeated.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from dstack.agent.protocol import (
    AgentInfo,
    ConnectRequest,
    Event,
    ExecRequest,
    StopRequest,
    TaskMetrics,
    TaskSpec,
    TaskState,
    whole_frames,
)
from dstack.core.errors import AgentError, Unreachable
from dstack.server.guards import assert_no_transaction
from dstack.server.hosts.sessions import ExecSession, Handshake, upgrade_request

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

CALL_SECONDS = 10.0
UPGRADE_SECONDS = 30.0
UPLOAD_SECONDS = 300.0
SILENCE_SECONDS = 45.0
"""An event stream that says nothing for so long, not even `ping`, is broken."""
MAX_IDLE_CONNECTIONS = 2
READ_LIMIT_BYTES = 256 * 1024


class Reader(Protocol):
    """What is read from: `asyncio.StreamReader` and asyncssh's alike."""

    async def readuntil(self, separator: bytes) -> bytes: ...
    async def readexactly(self, n: int) -> bytes: ...


class Writer(Protocol):
    """What is written to: `asyncio.StreamWriter` and asyncssh's alike."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...


Connect = Callable[[], Awaitable[tuple[Any, Any]]]
Dial = Callable[[Callable[[], Handshake]], Awaitable[Handshake]]
"""Makes a connection to the agent whose protocol the given function makes."""


class AgentRefused(AgentError):
    """The agent answered with an error; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TaskUnknown(AgentRefused):
    """The agent has no such task."""


class LogChunk(NamedTuple):
    """Whole frames of a log, and the offset behind the last of them."""

    frames: bytes
    end_offset: int


@contextmanager
def _short_path(path: str) -> Iterator[str]:
    """A name of `path` by way of its folder's descriptor, as an address has room for 107 bytes only."""
    folder_path, name = os.path.split(os.path.abspath(path))
    folder = os.open(folder_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{name}"
    finally:
        os.close(folder)


def connect_unix(path: str) -> Connect:
    """Connections to an agent on this machine."""

    async def connect() -> tuple[Any, Any]:
        with _short_path(path) as short:
            return await asyncio.open_unix_connection(short, limit=READ_LIMIT_BYTES)

    return connect


def dial_unix(path: str) -> Dial:
    """The same, for a protocol that takes the bytes as they come."""

    async def dial(factory: Callable[[], Handshake]) -> Handshake:
        with _short_path(path) as short:
            _, protocol = await asyncio.get_running_loop().create_unix_connection(factory, short)
            return protocol

    return dial


class AgentClient:
    """One agent. Raises Unreachable when it cannot be talked to, AgentRefused (TaskUnknown) for its errors; never
    inside a database transaction, which would keep everybody waiting for a host."""

    def __init__(self, connect: Connect, dial: Dial, *, timeout_seconds: float = CALL_SECONDS) -> None:
        self._connect = connect
        self._dial = dial
        self._timeout = timeout_seconds
        self._idle: list[_Connection] = []
        self._is_closed = False

    @classmethod
    def on_socket(cls, path: str) -> AgentClient:
        """The client of an agent on this machine."""
        return cls(connect_unix(path), dial_unix(path))

    async def info(self) -> AgentInfo:
        return AgentInfo.from_json(await self._call("GET", "/v1/info"))

    async def put_task(self, spec: TaskSpec) -> TaskState:
        """Starts a task, or answers the state of the one that was started before."""
        return TaskState.from_json(await self._call("PUT", f"/v1/tasks/{spec.id}", spec.to_json()))

    async def get_task(self, task_id: str) -> TaskState:
        return TaskState.from_json(await self._call("GET", f"/v1/tasks/{task_id}"))

    async def task_metrics(self, task_id: str) -> TaskMetrics:
        """What a running task uses now; AgentRefused (409) when it does not run."""
        return TaskMetrics.from_json(await self._call("GET", f"/v1/tasks/{task_id}/metrics"))

    async def list_tasks(self) -> list[TaskState]:
        data = await self._call("GET", "/v1/tasks")
        return [TaskState.from_json(task) for task in data["tasks"]]

    async def stop_task(self, task_id: str, request: StopRequest | None = None) -> TaskState:
        body = (request or StopRequest()).to_json()
        return TaskState.from_json(await self._call("POST", f"/v1/tasks/{task_id}/stop", body))

    async def delete_task(self, task_id: str) -> None:
        await self._call("DELETE", f"/v1/tasks/{task_id}")

    async def acknowledge_logs(self, task_id: str, offset: int) -> TaskState:
        """Everything before `offset` is stored; the host may drop it."""
        path = f"/v1/tasks/{task_id}/logs/acknowledge"
        return TaskState.from_json(await self._call("POST", path, {"offset": offset}))

    async def put_file(self, task_id: str, name: str, content: bytes | AsyncIterable[bytes]) -> None:
        """Uploads a file that the spec of the task will name."""
        async with self._stream(UPLOAD_SECONDS) as connection, timeout(UPLOAD_SECONDS):
            await connection.send_file(f"/v1/tasks/{task_id}/files/{name}", content)
            await _result(connection, await connection.read_head())

    async def follow_logs(self, task_id: str, offset: int = 0, *, follow: bool = True) -> AsyncIterator[LogChunk]:
        """Frames from `offset` on; with `follow`, ends only when the task has ended and all was sent."""
        path = f"/v1/tasks/{task_id}/logs?offset={offset}&follow={int(follow)}"
        rest = b""
        async with self._open(path) as connection:
            async for data in connection.read_chunks(None if follow else self._timeout):
                rest += data
                used = whole_frames(rest)
                if used:
                    offset += used
                    yield LogChunk(rest[:used], offset)
                    rest = rest[used:]

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """The newest state of every task that changed after `after`, then each change; ends only by an error."""
        rest = b""
        async with self._open(f"/v1/events?after={after}") as connection:
            async for data in connection.read_chunks(SILENCE_SECONDS):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield Event.from_json(_json(line))
        raise Unreachable("the agent ended its event stream")

    async def exec(self, task_id: str, request: ExecRequest) -> ExecSession:
        """Starts a program beside a running task; AgentRefused (409) when the task does not run."""
        return ExecSession(*await self._upgrade(f"/v1/tasks/{task_id}/exec", request.to_json()))

    async def connect(self, task_id: str, request: ConnectRequest) -> tuple[Any, Any]:
        """(reader, writer) of a connection into a running task's network; each direction ends on its own.

        AgentRefused: 409 when the task does not run, 502 when nothing listens there.
        """
        return await self._upgrade(f"/v1/tasks/{task_id}/connect", request.to_json())

    async def connect_protocol(
        self, task_id: str, request: ConnectRequest, protocol: asyncio.Protocol
    ) -> asyncio.Transport:
        """The same for a protocol, which gets the bytes as they come: the quick way. Returns its transport.

        `protocol.connection_made` is called before this returns; flow is held by `pause_reading` of the transport
        and `pause_writing` of the protocol; `eof_received` has to return True where the other direction goes on.
        """
        assert_no_transaction("the agent")
        path = f"/v1/tasks/{task_id}/connect"
        asking = upgrade_request(path, request.to_json())
        async with _told(f"POST {path}"), timeout(UPGRADE_SECONDS):
            handshake = await self._dial(lambda: Handshake(asking))
            try:
                status, body = await handshake.answer
                if status != 101:
                    raise _refusal(status, body)
            except BaseException:
                handshake.close()
                raise
        return handshake.hand_over(protocol)

    async def _upgrade(self, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
        assert_no_transaction("the agent")
        async with _told(f"POST {path}"), timeout(UPGRADE_SECONDS):
            reader, writer = await self._connect()
            try:
                writer.write(upgrade_request(path, body))
                await writer.drain()
                connection = _Connection(reader, writer)
                head = await connection.read_head()
                if head.status != 101:
                    raise _refusal(head.status, await connection.read_body())
            except BaseException:
                writer.close()
                raise
        return reader, writer

    async def close(self) -> None:
        """Closes the kept connections; streams end with whoever reads them."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        assert_no_transaction("the agent")
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._call_on(connection, method, path, body)
            except Unreachable:
                continue
        return await self._call_on(await self._new(), method, path, body)

    async def _call_on(self, connection: _Connection, method: str, path: str, body: dict[str, Any] | None) -> Any:
        keep = False
        try:
            async with _told(f"{method} {path}"), timeout(self._timeout):
                await connection.send(method, path, body)
                head = await connection.read_head()
                keep = not head.closes
                return await _result(connection, head)
        except (Unreachable, asyncio.CancelledError):
            keep = False
            raise
        finally:
            if keep and not self._is_closed and len(self._idle) < MAX_IDLE_CONNECTIONS:
                self._idle.append(connection)
            else:
                connection.close()

    async def _new(self) -> _Connection:
        assert_no_transaction("the agent")
        async with _told("connecting"), timeout(self._timeout):
            return _Connection(*await self._connect())

    @asynccontextmanager
    async def _stream(self, seconds: float) -> AsyncIterator[_Connection]:
        connection = await self._new()
        try:
            async with _told("streaming"):
                yield connection
        finally:
            connection.close()

    @asynccontextmanager
    async def _open(self, path: str) -> AsyncIterator[_Connection]:
        async with self._stream(self._timeout) as connection:
            async with timeout(self._timeout):
                await connection.send("GET", path, None)
                head = await connection.read_head()
                if head.status != 200:
                    await _result(connection, head)
            yield connection


@dataclass(frozen=True)
class _Head:
    status: int
    headers: dict[str, str]

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class _Connection:
    """HTTP/1.1 over one stream, one request after another."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self._head = _Head(0, {})

    async def send(self, method: str, path: str, body: dict[str, Any] | None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)
        await self._writer.drain()

    async def send_file(self, path: str, content: bytes | AsyncIterable[bytes]) -> None:
        self._writer.write(f"PUT {path} HTTP/1.1\r\nHost: agent\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        async for data in _pieces(content):
            self._writer.write(b"%x\r\n" % len(data) + data + b"\r\n")
            await self._writer.drain()
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def read_head(self) -> _Head:
        text = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").rstrip("\r\n").split("\r\n")
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise AgentError("The agent gave an answer that is not HTTP", detail=first[:200])
        pairs = (line.partition(":") for line in lines)
        self._head = _Head(int(parts[1]), {name.lower(): value.strip() for name, _, value in pairs})
        return self._head

    async def read_body(self) -> bytes:
        if "transfer-encoding" in self._head.headers:
            return b"".join([data async for data in self.read_chunks(None)])
        return await self._reader.readexactly(int(self._head.headers.get("content-length", "0")))

    async def read_chunks(self, silence_seconds: float | None) -> AsyncIterator[bytes]:
        """The pieces of a chunked body; between two of them at most `silence_seconds` may pass."""
        while True:
            async with timeout(silence_seconds):
                size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
                data = await self._reader.readexactly(size)
                await self._reader.readexactly(len(b"\r\n"))
            if not size:
                return
            yield data

    def close(self) -> None:
        self._writer.close()


async def _pieces(content: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        if content:
            yield content
        return
    async for data in content:
        if data:
            yield data


async def _result(connection: _Connection, head: _Head) -> Any:
    """The answer's JSON. Raises AgentRefused for an error."""
    body = await connection.read_body()
    if head.status < 300:
        return _json(body) if body else {}
    raise _refusal(head.status, body)


def _refusal(status: int, body: bytes) -> AgentRefused:
    message = str(_json(body).get("error") or f"the agent answered with status {status}")
    return (TaskUnknown if status == 404 else AgentRefused)(status, message)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise AgentError("The agent gave an answer that is not JSON", detail=repr(data[:200])) from error


@asynccontextmanager
async def _told(doing: str) -> AsyncIterator[None]:
    """Turns broken connections and timeouts into Unreachable."""
    try:
        yield
    except asyncio.TimeoutError as error:
        raise Unreachable("The agent does not answer", detail=f"{doing}: timed out") from error
    except asyncio.IncompleteReadError as error:
        raise Unreachable("The connection to the agent broke", detail=f"{doing}: {error}") from error
    except OSError as error:
        raise Unreachable(f"No connection to the agent: {error.strerror or error}", detail=doing) from error
    except Exception as error:
        if type(error).__module__.startswith("asyncssh."):  # which is loaded only where there are SSH hosts
            raise Unreachable("The connection to the host broke", detail=f"{doing}: {error}") from error
        raise

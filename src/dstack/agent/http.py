"""A small HTTP/1.1 server for Unix sockets: keep-alive, both body framings, size limits.

It knows nothing of tasks. A handler gets a `Request` and returns a `Response`; an `HttpError` that it raises
becomes an error answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import logging
import os
import pwd
import socket
import urllib.parse
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Optional, Protocol, Set, Tuple, Union

from dstack.agent.protocol import UPGRADE_PROTOCOL
from dstack.agent.streams import Stream

MAX_HEAD_BYTES = 32 * 1024
MAX_JSON_BYTES = 8 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
LINE_BYTES = 1024
REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    507: "Insufficient Storage",
}
_SWITCHING = (
    f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE_PROTOCOL}\r\n\r\n".encode()
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


class HttpError(Exception):
    """Becomes an answer with this status and text, and a `code` for machines where there is one."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Upgraded(Protocol):
    """What goes on over a connection after a 101."""

    async def run(self, stream: Stream) -> None:
        """Uses the connection, which is closed afterwards."""
        ...

    async def close(self) -> None:
        """Called at the end in any case, also when it was never run."""
        ...


@dataclasses.dataclass
class Response:
    """`body` is bytes, or an iterator of them whose length is not known beforehand; `upgraded` answers 101."""

    status: int = 200
    body: Union[bytes, AsyncIterator[bytes]] = b""
    content_type: str = "application/json"
    upgraded: Optional[Upgraded] = None


def json_response(data: Dict[str, Any], status: int = 200) -> Response:
    """A JSON object as an answer."""
    return Response(status, json.dumps(data, separators=(",", ":")).encode())


class Request:
    """One request; its body has to be read before the answer is sent, what is left is skipped."""

    def __init__(self, method: str, target: str, headers: Dict[str, str], reader: asyncio.StreamReader) -> None:
        split = urllib.parse.urlsplit(target)
        self.method = method
        self.path = split.path
        self.query: Dict[str, str] = dict(urllib.parse.parse_qsl(split.query))
        self.headers = headers
        self._reader = reader
        self._chunked, self._left = _framing(headers)
        self._done = not self._chunked and not self._left

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body piece by piece. Raises HttpError when it is malformed."""
        while not self._done:
            if self._chunked and not self._left:
                self._left = _chunk_size(await _line(self._reader))
                if not self._left:
                    await self._skip_trailer()
                    return
            data = await self._reader.read(min(self._left, CHUNK_BYTES))
            if not data:
                raise ConnectionError("the client went away within a request")
            self._left -= len(data)
            if not self._left and self._chunked and await _line(self._reader):
                raise HttpError(400, "malformed chunked body")
            self._done = not self._chunked and not self._left
            yield data

    async def _skip_trailer(self) -> None:
        while await _line(self._reader):
            pass
        self._done = True

    async def body(self, limit: int = MAX_JSON_BYTES) -> bytes:
        """The whole body. Raises HttpError 413 beyond `limit` bytes."""
        if self._left > limit:
            raise HttpError(413, f"the body is larger than {limit} bytes")
        parts, size = [], 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                raise HttpError(413, f"the body is larger than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)

    async def json(self) -> Dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object."""
        try:
            data = json.loads(await self.body() or b"{}")
        except ValueError as error:
            raise HttpError(400, f"the body is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise HttpError(400, "the body has to be a JSON object")
        return data

    def check_upgrade(self) -> None:
        """Raises HttpError when the client does not ask for a stream."""
        wishes = [wish.strip().lower() for wish in self.headers.get("connection", "").split(",")]
        if "upgrade" not in wishes or self.headers.get("upgrade", "").lower() != UPGRADE_PROTOCOL:
            message = "this call answers with a stream: ask with `Connection: Upgrade` and `Upgrade: {}`"
            raise HttpError(400, message.format(UPGRADE_PROTOCOL))

    @property
    def is_read(self) -> bool:
        """Whether the next request may follow on the connection."""
        return self._done


def _framing(headers: Dict[str, str]) -> Tuple[bool, int]:
    length, encoding = headers.get("content-length"), headers.get("transfer-encoding")
    if encoding is not None:
        if encoding.lower() != "chunked" or length is not None:
            raise HttpError(400, "unclear framing: send either Content-Length or chunked")
        return True, 0
    if length is None:
        return False, 0
    if not length.isdigit():
        raise HttpError(400, "malformed Content-Length")
    return False, int(length)


def _chunk_size(line: bytes) -> int:
    try:
        size = int(line.split(b";")[0], 16)
    except ValueError as error:
        raise HttpError(400, "malformed chunk size") from error
    if size < 0:
        raise HttpError(400, "malformed chunk size")
    return size


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError as error:
        raise HttpError(400, "line too long") from error
    if len(line) > LINE_BYTES:
        raise HttpError(400, "line too long")
    return line[:-2]


async def read_head(reader: asyncio.StreamReader) -> Optional[Tuple[str, Dict[str, str]]]:
    """(first line, headers with lower-case names); None when the peer closed between two messages."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial.strip():
            raise ConnectionError("the connection broke within a message") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise HttpError(431, f"the head is larger than {MAX_HEAD_BYTES} bytes") from error
    first, *lines = head.decode("latin-1").lstrip("\r\n").rstrip("\r\n").split("\r\n")
    headers: Dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or name.lower() in headers:
            raise HttpError(400, "malformed header line")
        headers[name.lower()] = value.strip()
    return first, headers


Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Serves one Unix socket. `connections` counts the clients of the moment."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: Optional[asyncio.AbstractServer] = None
        self._tasks: Set[asyncio.Task[None]] = set()
        self.on_idle: Callable[[], None] = lambda: None

    @property
    def connections(self) -> int:
        return len(self._tasks)

    async def start(self, path: str, user: str = "") -> None:
        """Listens on `path`, which only this user (and root) or `user` may open; a leftover of a dead server is
        replaced."""
        self._server = await asyncio.start_unix_server(
            self._accept, sock=bind(path, user=user), limit=MAX_HEAD_BYTES
        )

    async def stop(self) -> None:
        """Stops listening and ends all connections."""
        if self._server:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            _log.error("a connection failed", exc_info=task.exception())
        self.on_idle()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            _log.debug("a client went away")
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False when the connection has to end."""
        request = None
        try:
            head = await read_head(reader)
            if head is None:
                return False
            request = _request(head, reader)
            response = await self._handler(request)
        except HttpError as error:
            told = {"error": str(error), "code": error.code} if error.code else {"error": str(error)}
            response = json_response(told, error.status)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            response = _os_error(error)
        if response.upgraded is not None:
            await _upgrade(reader, writer, response.upgraded)
            return False
        keep = request is not None and request.is_read and request.headers.get("connection") != "close"
        if isinstance(response.body, bytes):
            await _send(writer, response, response.body, keep)
        else:
            await _stream(reader, writer, response, response.body)
        return keep


def _os_error(error: OSError) -> Response:
    if error.errno in _DISK_FULL:
        return json_response({"error": f"the disk of the host is full: {error}"}, 507)
    _log.error("a request failed", exc_info=error)
    return json_response({"error": f"the agent cannot do this: {error}"}, 500)


def _request(head: Tuple[str, Dict[str, str]], reader: asyncio.StreamReader) -> Request:
    parts = head[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise HttpError(400, "malformed request line")
    return Request(parts[0], parts[1], head[1], reader)


async def _send(writer: asyncio.StreamWriter, response: Response, body: bytes, keep: bool) -> None:
    lines = [f"HTTP/1.1 {response.status} {REASONS[response.status]}"]
    if response.status != 204:
        lines += ["Content-Type: " + response.content_type, f"Content-Length: {len(body)}"]
    if not keep:
        lines.append("Connection: close")
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()


async def _stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, response: Response, body: AsyncIterator[bytes]
) -> None:
    """Sends a body of unknown length until it ends or the client goes away."""
    head = "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.format(response.status, REASONS[response.status], response.content_type).encode())
    sending = asyncio.ensure_future(_send_chunks(writer, body))
    leaving = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise ConnectionError("the client went away within an answer")
        sending.result()
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
    if leaving.done() and not leaving.cancelled():
        raise ConnectionError("the client went away within an answer")


async def _upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upgraded: Upgraded) -> None:
    """Leaves the connection to `upgraded`."""
    try:
        writer.transport.set_write_buffer_limits(0)
        await writer.drain()  # answers before this one are on their way now
        stream = await take_over(reader, writer)
        try:
            await stream.write(_SWITCHING)
            await upgraded.run(stream)
        finally:
            stream.close()
    finally:
        await upgraded.close()


async def take_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Stream:
    """The connection without asyncio's buffers; what is in them comes first."""
    transport = writer.transport
    assert isinstance(transport, asyncio.Transport)
    early = []
    while True:
        transport.pause_reading()
        reading = asyncio.ensure_future(reader.read(MAX_HEAD_BYTES))
        await asyncio.sleep(0)  # one step is enough when there is something
        if not reading.done():
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            break
        early.append(reading.result())
        if not early[-1]:
            break
    return Stream.of_socket(writer.get_extra_info("socket").dup(), b"".join(early))


async def _send_chunks(writer: asyncio.StreamWriter, body: AsyncIterator[bytes]) -> None:
    async for data in body:
        writer.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def short_path(path: str) -> Tuple[str, int]:
    """(name, descriptor to close) of a socket path that fits into a Unix address however long `path` is."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{os.path.basename(path)}", folder


def bind(path: str, kind: int = socket.SOCK_STREAM, user: str = "") -> socket.socket:
    """A Unix socket bound to `path` with mode 0600, given to `user` if one is named; a leftover is replaced."""
    if os.path.exists(path):
        os.unlink(path)
    name, folder = short_path(path)
    bound = socket.socket(socket.AF_UNIX, kind)
    bound.setblocking(False)
    mask = os.umask(0o177)
    try:
        bound.bind(name)
        if user:
            os.chown(name, pwd.getpwnam(user).pw_uid, -1)
    finally:
        os.umask(mask)
        os.close(folder)
    return bound

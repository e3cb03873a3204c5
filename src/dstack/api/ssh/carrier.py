"""Carries the bytes of one SSH connection over a WebSocket to a server's SSH door, as `ProxyCommand` of `ssh`.

    python -I -S carrier.py ACCESS

ACCESS is a file that holds `{"url", "token", "version", "ca"}`: the server's URL, the user's token, the
compatibility level to speak and a file of certificate authorities (null: the system's).

It is a program of its own, run in isolated mode and importing little, because every `ssh` of a user starts it:
standard input goes to the server in binary messages (RFC 6455), what comes back to standard output, and neither
side is read faster than the other takes it. What goes wrong is one line on standard error, which `ssh` shows.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import select
import socket
import sys
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

CONNECT_TIMEOUT = 15.0
"""Seconds, also for the answer to the upgrade."""
CHUNK = 64 * 1024
MAX_HEAD = 64 * 1024
"""Bytes."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
NORMAL_CLOSURE = 1000
TLS_IS_BUSY = ("SSLWantReadError", "SSLWantWriteError")
"""By name, because only connections with TLS import `ssl`."""


class CarrierError(Exception):
    """Why no bytes can be carried, in words for the user."""


def main(arguments: list[str]) -> int:
    """The exit status: 0 once either side has ended the connection."""
    try:
        with open(arguments[0], encoding="utf-8") as file:
            access = json.load(file)
        connection, rest = connect(access)
        with connection:
            pump(connection, rest)
    except (CarrierError, OSError, ValueError, IndexError) as error:
        sys.stderr.write(f"dstack: {error}\n")
        return 1
    return 0


def connect(access: dict[str, str | None]) -> tuple[socket.socket, bytes]:
    """An upgraded connection and what the server sent after its answer."""
    url = (access["url"] or "").rstrip("/")
    parts = urlsplit(url)
    try:
        connection = _open(parts.scheme, parts.netloc, parts.hostname or "", parts.port, access.get("ca"))
        key = base64.b64encode(os.urandom(16))
        host = "localhost" if parts.scheme == "http+unix" else parts.netloc.rpartition("@")[2]
        connection.sendall(_request(f"{parts.path}/api/ssh", host, key, access))
        head, rest = _read_head(connection)
    except OSError as error:
        raise CarrierError(f"cannot reach the server at {url}: {error.strerror or error}") from error
    _check_answer(head, rest, key)
    connection.settimeout(None)
    return connection, rest


def _open(scheme: str, netloc: str, host: str, port: int | None, ca: str | None) -> socket.socket:
    if scheme == "http+unix":
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.settimeout(CONNECT_TIMEOUT)
        local.connect(unquote(netloc))
        return local
    connection = socket.create_connection((host, port or (443 if scheme == "https" else 80)), CONNECT_TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if scheme != "https":
        return connection
    import ssl  # noqa: PLC0415 (half of the start-up time, and most servers of one machine speak plain HTTP)

    return ssl.create_default_context(cafile=ca).wrap_socket(connection, server_hostname=host)


def _request(target: str, host: str, key: bytes, access: dict[str, str | None]) -> bytes:
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key.decode()}",
        f"Authorization: Bearer {access['token']}",
        f"X-API-VERSION: {access['version']}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The answer's head and the bytes after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(CHUNK)
        if not chunk or len(data) > MAX_HEAD:
            raise CarrierError("the server ended the connection before it answered")
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _check_answer(head: bytes, rest: bytes, key: bytes) -> None:
    """Raises CarrierError unless the server has agreed."""
    status_line, *lines = head.decode("latin-1").split("\r\n")
    status = status_line.split(" ")[1] if " " in status_line else "?"
    if status != "101":
        raise CarrierError(_explain_refusal(status, rest))
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    expected = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
    if headers.get("sec-websocket-accept") != expected:
        raise CarrierError("something between here and the server does not understand WebSockets")


def _explain_refusal(status: str, body: bytes) -> str:
    reasons = {
        "401": "the server does not know the token: see `dstack project list`",
        "403": "the server does not accept the token: see `dstack project list`",
        "404": "the server has no SSH door: it is older than this client, or the door is off",
        "426": "something between here and the server does not pass WebSockets on",
        "429": "too many failed attempts: try again in a minute",
    }
    with contextlib.suppress(ValueError, TypeError, KeyError):
        detail = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["detail"]
        detail = detail[0] if isinstance(detail, list) else detail
        return str(detail["msg"] if isinstance(detail, dict) else detail)
    return reasons.get(status, f"the server answered {status} instead of opening a WebSocket")


def encode(opcode: int, payload: bytes, key: bytes) -> bytes:
    """One whole message as a client sends it: masked."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + key + mask(payload, key)


def mask(payload: bytes, key: bytes) -> bytes:
    """The payload XOR the repeated key, as one large number: the quickest way without a library."""
    size = len(payload)
    repeated = (key * (size // 4 + 1))[:size]
    number = int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")
    return number.to_bytes(size, "little")


class FrameReader:
    """Takes the bytes of the server's frames apart; the data of a message is passed on as it comes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._opcode = BINARY
        self._left = 0
        """Bytes of the present data frame that are still to come."""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Pairs of opcode and payload: pieces of data as BINARY, control frames whole. Raises CarrierError."""
        self._buffer += data
        while self._buffer:
            if self._left:
                piece = bytes(self._buffer[: self._left])
                del self._buffer[: len(piece)]
                self._left -= len(piece)
                yield BINARY, piece
                continue
            head = self._parse_head()
            if head is None:
                return
            opcode, start, size = head
            if opcode < CLOSE:
                del self._buffer[:start]
                self._left = size
            elif len(self._buffer) < start + size:
                return
            else:
                payload = bytes(self._buffer[start : start + size])
                del self._buffer[: start + size]
                yield opcode, payload

    def _parse_head(self) -> tuple[int, int, int] | None:
        """Opcode, length of the head and of the payload; None while the head is not whole."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        opcode, size = buffer[0] & 0x0F, buffer[1] & 0x7F
        start = 2 + (2 if size == 126 else 8 if size == 127 else 0)
        if buffer[0] & 0x70 or buffer[1] & 0x80 or opcode not in (CONTINUATION, BINARY, CLOSE, PING, PONG):
            raise CarrierError("the server sent a frame that no SSH door sends")
        if len(buffer) < start:
            return None
        return opcode, start, int.from_bytes(buffer[2:start], "big") if start > 2 else size


class Pump:
    """The state of both directions. Each side is read only while nothing waits to be written to the other."""

    def __init__(self, connection: socket.socket, rest: bytes) -> None:
        self.connection = connection
        self.reader = FrameReader()
        self.to_server = memoryview(b"")
        self.to_client = memoryview(b"")
        self.is_over = False
        self._answers = b""
        """Control frames that go to the server after what waits already."""
        self._take(rest)

    def read_client(self) -> None:
        """Takes what `ssh` says; its end ends the connection."""
        data = os.read(0, CHUNK)
        if data:
            self.to_server = memoryview(encode(BINARY, data, os.urandom(4)))
        else:
            self._end(NORMAL_CLOSURE.to_bytes(2, "big"))

    def read_server(self) -> None:
        """Takes all that the connection holds at this moment: TLS may hold more than the socket shows."""
        try:
            data = self.connection.recv(CHUNK)
            while data and getattr(self.connection, "pending", int)():
                data += self.connection.recv(CHUNK)
        except OSError as error:
            return self._check_failure(error)
        if data:
            self._take(data)
        else:
            self._stop()

    def write_server(self) -> None:
        """Sends as much as the connection takes."""
        try:
            sent = self.connection.send(self.to_server)
        except OSError as error:
            return self._check_failure(error)
        self.to_server = self.to_server[sent:]
        if not self.to_server and self._answers:
            self.to_server, self._answers = memoryview(self._answers), b""

    def write_client(self) -> None:
        """Hands over as much as `ssh` takes."""
        try:
            written = os.write(1, self.to_client)
        except (BlockingIOError, InterruptedError):
            return
        self.to_client = self.to_client[written:]

    def _take(self, data: bytes) -> None:
        pieces = []
        for opcode, payload in self.reader.feed(data):
            if opcode == BINARY:
                pieces.append(payload)
            elif opcode == PING:
                self._answer(PONG, payload)
            elif opcode == CLOSE:
                _check_close(payload)
                self._end(payload[:2])
        self.to_client = memoryview(b"".join(pieces))

    def _end(self, code: bytes) -> None:
        self._answer(CLOSE, code)
        self.is_over = True

    def _stop(self) -> None:
        """Nothing reaches the server any more."""
        self.is_over = True
        self.to_server, self._answers = memoryview(b""), b""

    def _check_failure(self, error: OSError) -> None:
        """Raises CarrierError unless the connection is only busy, or was over already."""
        if isinstance(error, (BlockingIOError, InterruptedError)) or type(error).__name__ in TLS_IS_BUSY:
            return
        if not self.is_over:
            raise CarrierError(f"the connection to the server broke: {error.strerror or error}") from error
        self._stop()

    def _answer(self, opcode: int, payload: bytes) -> None:
        self._answers += encode(opcode, payload, os.urandom(4))
        if not self.to_server:
            self.to_server, self._answers = memoryview(self._answers), b""


def _check_close(payload: bytes) -> None:
    """Raises CarrierError when the server says why it ends the connection."""
    code, reason = int.from_bytes(payload[:2], "big"), payload[2:].decode(errors="replace")
    if len(payload) >= 2 and code not in (NORMAL_CLOSURE, 1001) and reason:
        raise CarrierError(f"the server ended the connection: {reason}")


def pump(connection: socket.socket, rest: bytes) -> None:
    """Carries bytes both ways until one side ends and what it said has been passed on."""
    os.set_blocking(0, False)
    os.set_blocking(1, False)
    connection.setblocking(False)
    state = Pump(connection, rest)
    server, hung_up = connection.fileno(), select.POLLHUP | select.POLLERR | select.POLLNVAL
    while not (state.is_over and not state.to_client and not state.to_server):
        poll = select.poll()
        for number, events in _wanted(state, server).items():
            poll.register(number, events)
        ready = dict(poll.poll())
        if ready.get(1, 0) & hung_up:
            return
        if ready.get(1, 0) & select.POLLOUT:
            state.write_client()
        if ready.get(server, 0) & (select.POLLOUT | hung_up) and state.to_server:
            state.write_server()
        if ready.get(server, 0) & (select.POLLIN | hung_up) and not state.to_client and not state.is_over:
            state.read_server()
        if ready.get(0, 0) and not state.to_server:
            state.read_client()


def _wanted(state: Pump, server: int) -> dict[int, int]:
    """What to wait for, by file descriptor."""
    wanted = {1: select.POLLOUT if state.to_client else 0}
    from_server = select.POLLIN if not state.to_client and not state.is_over else 0
    to_server = select.POLLOUT if state.to_server else 0
    if from_server or to_server:
        wanted[server] = from_server | to_server
    if not state.to_server and not state.is_over:
        wanted[0] = select.POLLIN
    return wanted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

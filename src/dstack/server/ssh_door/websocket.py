"""The server's side of WebSockets (RFC 6455), for carrying bytes: no extensions, no text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MAX_FRAME_BYTES = 4 * 1024 * 1024
NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED, TOO_BIG = 1000, 1001, 1002, 1003, 1009

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocketError(Exception):
    """The other side breaks the rules; `code` is for the close frame."""

    def __init__(self, message: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


def accept(headers: Mapping[str, str]) -> bytes:
    """The answer to a request for an upgrade, whose header names are in lower case. Raises WebSocketError."""
    key = headers.get("sec-websocket-key", "")
    wants = [token.strip().lower() for token in headers.get("connection", "").split(",")]
    if headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in wants or not key:
        raise WebSocketError("expected a WebSocket: Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Key")
    if headers.get("sec-websocket-version") != "13":
        raise WebSocketError("expected Sec-WebSocket-Version: 13")
    token = base64.b64encode(hashlib.sha1(key.encode("latin-1") + _MAGIC).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"
    )


def frame_head(kind: int, length: int) -> bytes:
    """Of a whole message of the server, which goes unmasked."""
    if length < 126:
        return bytes((0x80 | kind, length))
    if length < 1 << 16:
        return bytes((0x80 | kind, 126)) + length.to_bytes(2, "big")
    return bytes((0x80 | kind, 127)) + length.to_bytes(8, "big")


def close_frame(code: int, reason: str = "") -> bytes:
    payload = code.to_bytes(2, "big") + reason.encode()[:123]
    return frame_head(CLOSE, len(payload)) + payload


class FrameReader:
    """Takes a client's bytes apart."""

    def __init__(self) -> None:
        self._buffer = b""
        self._is_inside_message = False

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(kind, payload) of what is complete: BINARY (parts of a message count as messages), CLOSE, PING, PONG.

        Raises WebSocketError.
        """
        buffer = self._buffer + data if self._buffer else data
        found, position = [], 0
        while (end := self._end_of_frame(buffer, position)) is not None:
            found.append(self._frame(buffer, position, end))
            position = end
        self._buffer = buffer[position:]
        return found

    def _end_of_frame(self, buffer: bytes, position: int) -> int | None:
        """None while the frame is not complete."""
        if len(buffer) - position < 2:
            return None
        start = position + 2 + _length_bytes(buffer[position + 1])
        if not buffer[position + 1] & 0x80:
            raise WebSocketError("a client's frame must be masked")
        if len(buffer) < start + 4:
            return None
        length = _length(buffer, position)
        if length > MAX_FRAME_BYTES:
            raise WebSocketError(f"a frame may have {MAX_FRAME_BYTES} bytes, not {length}", TOO_BIG)
        end = start + 4 + length
        return end if len(buffer) >= end else None

    def _frame(self, buffer: bytes, position: int, end: int) -> tuple[int, bytes]:
        kind, is_last = buffer[position] & 0x0F, bool(buffer[position] & 0x80)
        if buffer[position] & 0x70:
            raise WebSocketError("no extension was agreed on")
        mask = position + 2 + _length_bytes(buffer[position + 1])
        payload = _unmask(buffer[mask + 4 : end], buffer[mask : mask + 4])
        if kind in (CLOSE, PING, PONG):
            if not is_last or len(payload) > 125:
                raise WebSocketError("a control frame must be whole and short")
            return kind, payload
        if kind == TEXT:
            raise WebSocketError("expected binary messages", UNSUPPORTED)
        if kind not in (BINARY, CONTINUATION) or (kind == CONTINUATION) != self._is_inside_message:
            raise WebSocketError("a frame of this kind cannot come here")
        self._is_inside_message = not is_last
        return BINARY, payload


def _length_bytes(second: int) -> int:
    """How many bytes of length follow the second byte of a frame."""
    return {126: 2, 127: 8}.get(second & 0x7F, 0)


def _length(buffer: bytes, position: int) -> int:
    extra = _length_bytes(buffer[position + 1])
    if not extra:
        return buffer[position + 1] & 0x7F
    return int.from_bytes(buffer[position + 2 : position + 2 + extra], "big")


def _unmask(data: bytes, mask: bytes) -> bytes:
    """As one number: the quickest way that the standard library has."""
    size = len(data)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")

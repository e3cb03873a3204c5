"""Reading bodies framed by chunks (RFC 9112, 7.1). Pure.

Extensions and trailers are checked and left out: whoever passes the body on frames it anew.
"""

from __future__ import annotations

import re
from enum import IntEnum

from dstack.proxy.headers import BadMessage

MAX_LINE_BYTES = 4096
MAX_TRAILER_BYTES = 16384
LAST_CHUNK = b"0\r\n\r\n"

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class _At(IntEnum):
    SIZE = 0
    PAYLOAD = 1
    PAYLOAD_END = 2
    TRAILER = 3
    END = 4


def chunk(payload: bytes) -> bytes:
    """`payload` must not be empty: that would be the last chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class ChunkedReader:
    """Fed with bytes as they arrive; gives the payload, and keeps what follows the body in `rest`."""

    __slots__ = ("_at", "_left", "_pending", "_trailer_bytes", "rest")

    def __init__(self) -> None:
        self._at = _At.SIZE
        self._left = 0
        self._pending = b""
        self._trailer_bytes = 0
        self.rest = b""

    @property
    def is_finished(self) -> bool:
        return self._at is _At.END

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`. Raises `BadMessage`."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        pieces: list[bytes] = []
        position = 0
        while self._at is not _At.END:
            after = self._step(data, position, pieces)
            if after is None:
                break
            position = after
        if self._at is _At.END:
            self.rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _step(self, data: bytes, position: int, pieces: list[bytes]) -> int | None:
        """Reads one element from `position`; the position after it, or None where more data is needed."""
        if self._at is _At.PAYLOAD:
            return self._payload(data, position, pieces)
        if self._at is _At.PAYLOAD_END:
            return self._payload_end(data, position)
        end = data.find(b"\r\n", position)
        if end < 0:
            self._keep_partial_line(data, position)
            return None
        if self._at is _At.SIZE:
            self._size(data[position:end])
        else:
            self._trailer(data[position:end])
        return end + 2

    def _payload(self, data: bytes, position: int, pieces: list[bytes]) -> int | None:
        piece = data[position : position + self._left]
        if piece:
            pieces.append(piece)
            self._left -= len(piece)
        if self._left:
            return None
        self._at = _At.PAYLOAD_END
        return position + len(piece)

    def _payload_end(self, data: bytes, position: int) -> int | None:
        end = data[position : position + 2]
        if not b"\r\n".startswith(end):
            raise BadMessage("A chunk is longer than its size says")
        if len(end) < 2:
            self._pending = end
            return None
        self._at = _At.SIZE
        return position + 2

    def _size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None or len(line) > MAX_LINE_BYTES:
            raise BadMessage("A chunk has a malformed size")
        self._left = int(match[1], 16)
        self._at = _At.PAYLOAD if self._left else _At.TRAILER

    def _trailer(self, line: bytes) -> None:
        if not line:
            self._at = _At.END
            return
        self._trailer_bytes += len(line)
        if _TRAILER_LINE.fullmatch(line) is None or self._trailer_bytes > MAX_TRAILER_BYTES:
            raise BadMessage("The body's trailer is malformed")

    def _keep_partial_line(self, data: bytes, position: int) -> None:
        partial = data[position:]
        if len(partial) > MAX_LINE_BYTES or b"\n" in partial or b"\r" in partial[:-1]:
            raise BadMessage("A line between chunks is malformed")
        self._pending = partial

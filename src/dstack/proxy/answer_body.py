"""The body of an answer that did not come whole with its head: told where it ends, and framed for the client."""

from __future__ import annotations

from dstack.proxy.chunks import LAST_CHUNK, ChunkedReader, chunk
from dstack.proxy.headers import CHUNKED
from dstack.proxy.usage import UsageReader


class AnswerBody:
    """Fed with what the replica sends. `is_framed`: the client gets chunks where the length is not known."""

    __slots__ = ("_is_framed", "_usage", "is_finished", "is_spoilt")

    ends_by_close = False
    """The end of the replica's connection is the body's."""

    def __init__(self, usage: UsageReader | None, *, is_framed: bool) -> None:
        """`usage` reads along, where an answer may tell of tokens."""
        self._usage = usage
        self._is_framed = is_framed
        self.is_finished = False
        self.is_spoilt = False
        """The replica sent more than its answer: the connection can't be used again."""

    def feed(self, data: bytes) -> bytes:
        """What the client gets of it, maybe nothing. Raises `BadMessage`."""
        raise NotImplementedError

    def _note(self, payload: bytes) -> None:
        if self._usage is not None:
            self._usage.feed(payload)


class CountedBody(AnswerBody):
    """Of a known length in bytes, of which so many are `left`."""

    __slots__ = ("_left",)

    def __init__(self, left: int, usage: UsageReader | None) -> None:
        super().__init__(usage, is_framed=False)
        self._left = left

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            data = data[: self._left]
            self.is_spoilt = True
        self._left -= len(data)
        self.is_finished = not self._left
        self._note(data)
        return data


class ChunkedBody(AnswerBody):
    """In chunks, which are framed anew."""

    __slots__ = ("_reader",)

    def __init__(self, usage: UsageReader | None, *, is_framed: bool) -> None:
        super().__init__(usage, is_framed=is_framed)
        self._reader = ChunkedReader()

    def feed(self, data: bytes) -> bytes:
        reader = self._reader
        payload = reader.feed(data)
        out = b""
        if payload:
            self._note(payload)
            out = chunk(payload) if self._is_framed else payload
        if reader.is_finished:
            self.is_finished = True
            self.is_spoilt = bool(reader.rest)
            if self._is_framed:
                out += LAST_CHUNK
        return out


class BodyUntilClose(AnswerBody):
    """Until the replica closes its connection."""

    __slots__ = ()

    ends_by_close = True

    def feed(self, data: bytes) -> bytes:
        self._note(data)
        return chunk(data) if self._is_framed else data


def body_without_length(length: int, usage: UsageReader | None, *, is_framed: bool) -> AnswerBody:
    """`length` as in the answer's head: `CHUNKED` or `UNTIL_CLOSE`."""
    kind = ChunkedBody if length == CHUNKED else BodyUntilClose
    return kind(usage, is_framed=is_framed)

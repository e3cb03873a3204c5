from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.proxy.chunks import LAST_CHUNK, ChunkedReader, chunk
from dstack.proxy.headers import BadMessage


def read(body: bytes, step: int) -> tuple[bytes, ChunkedReader]:
    reader = ChunkedReader()
    payload, position = b"", 0
    while position < len(body) and not reader.is_finished:
        payload += reader.feed(body[position : position + step])
        position += step
    return payload, reader


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.integers(min_value=1, max_value=70))
def test_what_is_framed_is_read_however_it_arrives(pieces: list[bytes], step: int) -> None:
    payload, reader = read(b"".join(map(chunk, pieces)) + LAST_CHUNK, step)
    assert payload == b"".join(pieces)
    assert reader.is_finished


def test_extensions_and_trailers_are_left_out_and_the_rest_is_kept() -> None:
    payload, reader = read(b'3;a="b"\r\nabc\r\n000\r\nX-Sum: 1\r\n\r\nGET /', 100)
    assert (payload, reader.is_finished, reader.rest) == (b"abc", True, b"GET /")


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n", b"g\r\n", b"0x1\r\na\r\n", b"+1\r\na\r\n", b"-1\r\n", b" 1\r\na\r\n", b"1 \r\na\r\n", b"1\na\n",
        b"1\r\nab\r\n", b"1\r\na\n0\r\n\r\n", b"1\r\na0\r\n\r\n", b"1;a\x00\r\na\r\n", b"1;a\rb\r\na\r\n",
        b"1;a\nb\r\na\r\n", b"0\r\nbad trailer\r\n\r\n", b"0\r\n folded: 1\r\n\r\n", b"1" * 16 + b"\r\n",
        b"1;" + b"a" * 5000, b"0\r\n" + b"A: b\r\n" * 10000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 3, 100000])
def test_malformed_chunks_are_refused(body: bytes, step: int) -> None:
    with pytest.raises(BadMessage):
        read(body, step)

"""Tokens as answers of models tell of them."""

from __future__ import annotations

import pytest

from dstack.proxy.usage import MAX_TAIL_BYTES, UsageReader

WHOLE = b'{"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}}'
EVENT = b'data: {"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4}}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        ([WHOLE], (12, 34)),
        ([b"x" * 100_000 + WHOLE], (12, 34)),
        ([WHOLE[index : index + 1] for index in range(len(WHOLE))], (12, 34)),
        ([b"data: {}\n\n"] * 1000 + [EVENT], (5, 4)),
        ([b'{"usage": {"input_tokens": 7, "output_tokens": 8}}'], (7, 8)),
        ([b'{"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}'], (3, 0)),
        ([EVENT, EVENT.replace(b"5", b"6")], (6, 4)),
        ([WHOLE, b"x" * MAX_TAIL_BYTES], None),
        ([b"data: [DONE]\n\n"], None),
        ([], None),
    ],
)
def test_the_last_report_counts(pieces: list[bytes], tokens: tuple[int, int] | None) -> None:
    reader = UsageReader()
    for piece in pieces:
        reader.feed(piece)
    assert reader.tokens() == tokens

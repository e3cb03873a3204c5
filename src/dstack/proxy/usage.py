"""Tokens, read off answers of models as they pass: from their last bytes, where the reports of usage are."""

from __future__ import annotations

import re

MAX_TAIL_BYTES = 4096
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})')


class UsageReader:
    """Reads along with one answer: JSON, or server-sent events of which the last one tells."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> None:
        whole = data if len(data) >= MAX_TAIL_BYTES else self._tail + data
        self._tail = whole[-MAX_TAIL_BYTES:]

    def tokens(self) -> tuple[int, int] | None:
        """Of the prompt and the completion; None: the answer does not tell."""
        prompts = _PROMPT.findall(self._tail)
        if not prompts:
            return None
        completions = _COMPLETION.findall(self._tail)
        return int(prompts[-1]), int(completions[-1]) if completions else 0

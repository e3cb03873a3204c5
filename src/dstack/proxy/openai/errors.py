"""Errors in OpenAI's shape, with the text also under `detail`, as clients of the reference expect it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

_TYPES = {429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error. `headers` are further ones of the answer."""

    def __init__(
        self, status: int, text: str, code: str | None = None, *, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.headers = headers

    def body(self) -> bytes:
        text = str(self)
        return orjson.dumps({"detail": text, "error": describe(self.status, text, self.code)})


def describe(status: int, text: str, code: str | None = None) -> dict[str, Any]:
    """OpenAI's `error` object."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": text, "type": kind, "param": None, "code": code}


def with_both_keys(status: int, body: bytes) -> bytes:
    """A replica's error with what it lacks of `detail` (its text as it came) and `error`; all else is kept."""
    text = body.decode("utf-8", "replace")
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        said = None
    known: dict[str, Any] = said if isinstance(said, dict) else {}
    error = known.get("error")
    if not isinstance(error, dict):
        error = describe(status, _message(known) or text, code=None)
    return orjson.dumps({**known, "detail": known.get("detail", text), "error": error})


def _message(said: dict[str, Any]) -> str | None:
    """What common servers call the text of their errors."""
    for key in ("error", "message", "detail"):
        if isinstance(said.get(key), str):
            return str(said[key])
    return None

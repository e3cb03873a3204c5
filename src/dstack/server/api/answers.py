"""What handlers answer with: JSON bytes that are assembled once, never validated on the way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from dstack.core.canonical import dump_json, dump_json_list


class Json(Response):
    """JSON that is text already."""

    media_type = "application/json"


def model(answer: BaseModel) -> Json:
    return Json(dump_json(answer))


def models(answers: Iterable[BaseModel]) -> Json:
    return Json(dump_json_list(answers))


def nothing() -> Json:
    """The answer of operations that return nothing."""
    return Json(b"null")


def plain(answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> Json:
    """For simple values."""
    return Json(orjson.dumps(answer), status_code=status, headers=headers)

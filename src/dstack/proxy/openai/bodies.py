"""Which model a request is for. Pure."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

import orjson

from dstack.proxy.openai.errors import ApiError

_BOUNDARY = re.compile(rb"boundary=(?:\"([^\"]{1,70})\"|([^\s;\"]{1,70}))", re.IGNORECASE)
_NAMES_MODEL = re.compile(rb"^content-disposition:[^\r\n]*;[ \t]*name=\"?model\"?[ \t]*(?:;|\r|$)", re.I | re.M)
MAX_PART_HEAD_BYTES = 4096


def read_json(body: bytes) -> dict[str, Any]:
    """Raises `ApiError`: 422, as the reference answers a body that is no object."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(422, f"The request's body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(422, "The request's body must be a JSON object")
    return value


def model_of(content_type: bytes, body: bytes, query: bytes) -> str:
    """The name of the model: of a form, of JSON, or of the query where there is no body.

    Raises `ApiError` (422) where none is named.
    """
    name: Any = None
    if content_type.lower().startswith(b"multipart/form-data"):
        name = _form_model(content_type, body)
    elif body:
        name = read_json(body).get("model")
    else:
        name = parse_qs(query.decode("latin-1")).get("model", [None])[0]
    if not isinstance(name, str) or not name:
        raise ApiError(422, "The request must name a model: `model` is missing or is no text", "missing_model")
    return name


def _form_model(content_type: bytes, body: bytes) -> str | None:
    """Of `multipart/form-data`, which files are sent in."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        return None
    delimiter = b"\r\n--" + (match[1] or match[2])
    start = body.find(delimiter[2:])
    while start >= 0:
        head_end = body.find(b"\r\n\r\n", start, start + MAX_PART_HEAD_BYTES)
        if head_end < 0:
            return None
        end = body.find(delimiter, head_end)
        if _NAMES_MODEL.search(body[start:head_end]):
            return body[head_end + 4 : end].decode("utf-8", "replace") if end >= 0 else None
        start = end + 2 if end >= 0 else -1
    return None

"""The one table that turns errors into HTTP answers."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from dstack.core.errors import DstackError, RequestError, StoreError, TooManyAttempts
from dstack.server.api.answers import plain

logger = logging.getLogger(__name__)

MAX_INT_BITS = 63
"""Longer numbers cannot be written as JSON by us."""


def install(app: FastAPI) -> None:
    """Every error that leaves a handler is answered by one of these."""
    app.add_exception_handler(RequestError, answer_request_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(DstackError, answer_dstack_error)
    app.add_exception_handler(HTTPException, answer_http_error)


def request_error(error: RequestError) -> Response:
    """400: a list, as clients demand; 401: a text; others: an object."""
    message = str(error)
    if error.status == 400:
        entry: dict[str, Any] = {"msg": message, "code": error.code}
        if error.fields:
            entry["fields"] = error.fields
        return plain({"detail": [entry]}, 400)
    if error.status == 401:
        return plain({"detail": message}, 401, {"WWW-Authenticate": "Bearer"})
    headers = None
    if isinstance(error, TooManyAttempts):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
    return plain({"detail": {"msg": message, "code": None}}, error.status, headers)


async def answer_request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return request_error(error)


async def answer_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return plain({"detail": [_entry(e) for e in error.errors()]}, 422)


async def answer_dstack_error(_request: Request, error: Exception) -> Response:
    """What is not the caller's fault: something that we depend on does not work now."""
    assert isinstance(error, DstackError)
    logger.error("Request failed: %s", error.detail)
    status = 503 if isinstance(error, StoreError) or error.retryable else 500
    return plain({"detail": {"msg": str(error), "code": None}}, status)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths: 404 to GET and HEAD, 405 to all else (the pages of the user interface are GET only)."""
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        if request.method in ("GET", "HEAD"):
            return plain({"detail": "Not Found"}, 404)
        return plain({"detail": "Method Not Allowed"}, 405, {"Allow": "GET, HEAD"})
    return plain({"detail": error.detail}, error.status_code, dict(error.headers or {}))


def unexpected(scope: Scope, error: Exception) -> Response:
    """A mistake of ours. The text goes to the log, not to the caller."""
    logger.error("Unexpected error in %s %s", scope.get("method"), scope.get("path"), exc_info=error)
    return plain({"detail": {"msg": "Internal server error; see the log of the server", "code": None}}, 500)


def validation_error(error: ValidationError) -> RequestValidationError:
    """Of the request's body."""
    entries = error.errors(include_url=False)
    return RequestValidationError([{**entry, "loc": ("body", *entry["loc"])} for entry in entries])


def _entry(entry: Any) -> dict[str, Any]:
    shown = {key: entry[key] for key in ("type", "loc", "msg") if key in entry}
    shown["input"] = _plain_value(entry.get("input"))
    if "ctx" in entry:
        shown["ctx"] = {key: _plain_value(value) for key, value in entry["ctx"].items()}
    return shown


def _plain_value(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        return str(value)
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain_value(item) for key, item in value.items()}
    return str(value)

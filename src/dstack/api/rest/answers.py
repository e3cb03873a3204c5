"""What an answer of the server means: its JSON, or the error it stands for."""

from __future__ import annotations

import json
from typing import Any

from dstack.api.errors import NotSupported, ServerFailure
from dstack.core import errors

_BY_CODE: dict[str, type[errors.RequestError]] = {
    kind.code.value: kind
    for kind in (
        errors.InvalidRequest,
        errors.ResourceExists,
        errors.ResourceNotExists,
        errors.InvalidCredentials,
        errors.BackendNotAvailable,
        errors.RepoNotExists,
        errors.GatewayProblem,
    )
    if kind.code is not None
}
_BY_STATUS: dict[int, type[errors.RequestError]] = {
    401: errors.NotAuthenticated,
    403: errors.Forbidden,
    404: errors.ProjectNotFound,
}


def check_status(path: str, status: int, content: bytes) -> None:
    """Raises the error that the answer stands for; returns when it is none."""
    if status == 200:
        return
    detail = _detail(content)
    if status in (404, 405) and not isinstance(detail, dict):
        raise NotSupported(
            f"The server does not have {path}: it is older than this client, or not a dstack server"
        )
    if status == 400 and isinstance(detail, list) and detail:
        kind = _BY_CODE.get(str(detail[0].get("code")), errors.InvalidRequest)
        raise kind("; ".join(str(entry.get("msg")) for entry in detail), fields=detail[0].get("fields"))
    if status in _BY_STATUS:
        raise _BY_STATUS[status](_message(detail))
    if status == 429:
        raise errors.TooManyAttempts(_message(detail), retry_after_seconds=1)
    if status == 422:
        raise errors.InvalidRequest(_describe_violations(detail))
    if 400 <= status < 500:
        raise errors.InvalidRequest(_message(detail) or f"The server refused {path} with status {status}")
    raise ServerFailure(_describe_failure(path, status, content))


def parse_json(path: str, content: bytes) -> Any:
    """The JSON of a good answer."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise ServerFailure(
            f"The answer to {path} is not JSON: is there a dstack server behind this URL?"
        ) from error


def _detail(content: bytes) -> Any:
    try:
        body = json.loads(content)
    except ValueError:
        return None
    return body.get("detail") if isinstance(body, dict) else None


def _message(detail: Any) -> str:
    if isinstance(detail, dict):
        return str(detail.get("msg") or "")
    if isinstance(detail, list):
        return "; ".join(str(entry.get("msg")) for entry in detail if isinstance(entry, dict))
    return str(detail or "")


def _describe_violations(detail: Any) -> str:
    if not isinstance(detail, list):
        return f"The server does not understand the request: {_message(detail)}"
    described = [
        f"{'.'.join(str(part) for part in entry.get('loc', []) if part != 'body')}: {entry.get('msg')}"
        for entry in detail
    ]
    return "The server does not understand the request: " + "; ".join(described)


def _describe_failure(path: str, status: int, content: bytes) -> str:
    text = " ".join(content.decode(errors="replace").split())[:200]
    return f"The server failed at {path} with status {status}" + (f": {text}" if text else "")

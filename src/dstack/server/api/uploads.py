"""How uploads are read: `multipart/form-data` with one part named `file`, whose file name is its SHA-256."""

from __future__ import annotations

from typing import NamedTuple

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message

from dstack.core.errors import InvalidRequest


class Upload(NamedTuple):
    """What was sent."""

    name: str
    content: bytes


async def read_upload(request: Request, limit: int) -> Upload:
    """`limit`: bytes of the whole request, 0 for none. Raises InvalidRequest past it."""
    length = request.headers.get("content-length", "")
    if limit and length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    form = await _limited(request, limit).form(max_files=1)
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile) or not file.filename:
            missing = {"type": "missing", "loc": ("body", "file"), "msg": "Field required", "input": None}
            raise RequestValidationError([missing])
        return Upload(file.filename, await file.read())
    finally:
        await form.close()


def _limited(request: Request, limit: int) -> Request:
    """Counts what is really sent: a chunked request does not say its length beforehand."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if limit and received > limit:
            raise _too_large(limit)
        return message

    return Request(request.scope, receive)


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(
        f"The upload is larger than the server's limit of {limit} bytes; leave out files with .gitignore or "
        ".dstackignore, or raise DSTACK_SERVER_CODE_UPLOAD_LIMIT on the server"
    )

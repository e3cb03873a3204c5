"""`/api/files`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from dstack.core.files import FileArchive
from dstack.core.schemas.files import GetFileArchiveByHashRequest
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Authenticated, Ctx
from dstack.server.api.uploads import read_upload
from dstack.server.operations import files

router = APIRouter(prefix="/api/files", tags=["files"])


@router.post("/get_archive_by_hash", openapi_extra=answering(FileArchive))
async def get_archive_by_hash(
    caller: Authenticated,
    ctx: Ctx,
    body: Annotated[GetFileArchiveByHashRequest, JsonBody(GetFileArchiveByHashRequest)],
) -> Response:
    return answers.model(await files.get_archive_by_hash(ctx, caller, body.hash))


@router.post("/upload_archive", openapi_extra=answering(FileArchive))
async def upload_archive(caller: Authenticated, ctx: Ctx, request: Request) -> Response:
    """A tar archive, as `multipart/form-data` with one part `file` named by its SHA-256."""
    upload = await read_upload(request, ctx.settings.code_upload_limit)
    return answers.model(await files.upload_archive(ctx, caller, upload.name, upload.content))

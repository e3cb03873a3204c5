"""`/api/project/{project_name}/exports` and `imports`: sharing between projects is not part of this server, and
it says so in the way that clients of the reference expect."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.errors import InvalidRequest
from dstack.core.schemas.exports import CreateExportRequest, DeleteExportRequest, UpdateExportRequest
from dstack.core.schemas.imports import DeleteImportRequest
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import AdminOf, MemberOf

router = APIRouter(prefix="/api/project/{project_name}", tags=["sharing"])
NO_EXPORTS = "Exports are not supported by this server"
NO_IMPORTS = "Imports are not supported by this server"


@router.post("/exports/list", openapi_extra=answering())
async def list_exports(_: MemberOf) -> Response:
    raise InvalidRequest(NO_EXPORTS)


@router.post("/exports/create", openapi_extra=answering())
async def create_export(
    _: AdminOf, body: Annotated[CreateExportRequest, JsonBody(CreateExportRequest)]
) -> Response:
    raise InvalidRequest(NO_EXPORTS)


@router.post("/exports/update", openapi_extra=answering())
async def update_export(
    _: AdminOf, body: Annotated[UpdateExportRequest, JsonBody(UpdateExportRequest)]
) -> Response:
    raise InvalidRequest(NO_EXPORTS)


@router.post("/exports/delete", openapi_extra=answering())
async def delete_export(
    _: AdminOf, body: Annotated[DeleteExportRequest, JsonBody(DeleteExportRequest)]
) -> Response:
    raise InvalidRequest(NO_EXPORTS)


@router.post("/imports/list", openapi_extra=answering())
async def list_imports(_: MemberOf) -> Response:
    raise InvalidRequest(NO_IMPORTS)


@router.post("/imports/delete", openapi_extra=answering())
async def delete_import(
    _: AdminOf, body: Annotated[DeleteImportRequest, JsonBody(DeleteImportRequest)]
) -> Response:
    raise InvalidRequest(NO_IMPORTS)

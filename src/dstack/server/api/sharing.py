"""`/api/project/{project_name}/exports` and `imports`: fleets and gateways shared between projects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from dstack.core.exports import Export, Import
from dstack.core.schemas.exports import (
    CreateExportRequest,
    DeleteExportRequest,
    ListExportsResponse,
    UpdateExportRequest,
)
from dstack.core.schemas.imports import DeleteImportRequest, ListImportsResponse
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import AdminOf, Ctx, MemberOf
from dstack.server.api.versions import client_is_older
from dstack.server.operations import sharing

router = APIRouter(prefix="/api/project/{project_name}", tags=["sharing"])
WITH_WARNINGS = (0, 22, 0)
"""Since this level lists are objects."""


def _listed(request: Request, items: Sequence[BaseModel], answer: BaseModel) -> Response:
    return answers.models(items) if client_is_older(request, WITH_WARNINGS) else answers.model(answer)


@router.post("/exports/list", openapi_extra=answering(ListExportsResponse | list[Export]))
async def list_exports(at: MemberOf, ctx: Ctx, request: Request) -> Response:
    exports = await sharing.list_exports(ctx, at)
    return _listed(request, exports, ListExportsResponse(exports=exports))


@router.post("/exports/create", openapi_extra=answering(Export))
async def create_export(
    at: AdminOf, ctx: Ctx, body: Annotated[CreateExportRequest, JsonBody(CreateExportRequest)]
) -> Response:
    return answers.model(await sharing.create_export(ctx, at, body))


@router.post("/exports/update", openapi_extra=answering(Export))
async def update_export(
    at: AdminOf, ctx: Ctx, body: Annotated[UpdateExportRequest, JsonBody(UpdateExportRequest)]
) -> Response:
    return answers.model(await sharing.update_export(ctx, at, body))


@router.post("/exports/delete", openapi_extra=answering())
async def delete_export(
    at: AdminOf, ctx: Ctx, body: Annotated[DeleteExportRequest, JsonBody(DeleteExportRequest)]
) -> Response:
    await sharing.delete_export(ctx, at, body.name)
    return answers.nothing()


@router.post("/imports/list", openapi_extra=answering(ListImportsResponse | list[Import]))
async def list_imports(at: MemberOf, ctx: Ctx, request: Request) -> Response:
    imports = await sharing.list_imports(ctx, at)
    return _listed(request, imports, ListImportsResponse(imports=imports))


@router.post("/imports/delete", openapi_extra=answering())
async def delete_import(
    at: AdminOf, ctx: Ctx, body: Annotated[DeleteImportRequest, JsonBody(DeleteImportRequest)]
) -> Response:
    await sharing.delete_import(ctx, at, body.export_project_name, body.export_name)
    return answers.nothing()

"""`/api/volumes` and `/api/project/{project_name}/volumes`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.schemas.volumes import (
    CreateVolumeRequest,
    DeleteVolumesRequest,
    GetVolumeRequest,
    ListVolumesRequest,
)
from dstack.core.volumes import Volume
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Authenticated, Ctx, MemberOf
from dstack.server.operations import volumes

router = APIRouter(prefix="/api", tags=["volumes"])
PROJECT = "/project/{project_name}/volumes"


@router.post("/volumes/list", openapi_extra=answering(list[Volume]))
async def list_volumes(
    caller: Authenticated, ctx: Ctx, body: Annotated[ListVolumesRequest, JsonBody(ListVolumesRequest)]
) -> Response:
    return answers.models(await volumes.list_volumes(ctx, caller, body))


@router.post(f"{PROJECT}/list", openapi_extra=answering(list[Volume]))
async def list_project_volumes(at: MemberOf, ctx: Ctx) -> Response:
    return answers.models(await volumes.list_project_volumes(ctx, at))


@router.post(f"{PROJECT}/get", openapi_extra=answering(Volume))
async def get_volume(
    at: MemberOf, ctx: Ctx, body: Annotated[GetVolumeRequest, JsonBody(GetVolumeRequest)]
) -> Response:
    return answers.model(await volumes.get_volume(ctx, at, body.name))


@router.post(f"{PROJECT}/create", openapi_extra=answering(Volume))
async def create_volume(
    at: MemberOf, ctx: Ctx, body: Annotated[CreateVolumeRequest, JsonBody(CreateVolumeRequest)]
) -> Response:
    return answers.model(await volumes.create_volume(ctx, at, body.configuration))


@router.post(f"{PROJECT}/delete", openapi_extra=answering())
async def delete_volumes(
    at: MemberOf, ctx: Ctx, body: Annotated[DeleteVolumesRequest, JsonBody(DeleteVolumesRequest)]
) -> Response:
    """Names that nothing has are no error, as in the reference."""
    await volumes.delete_volumes(ctx, at, body.names)
    return answers.nothing()

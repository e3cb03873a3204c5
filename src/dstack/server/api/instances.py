"""`/api/instances` and `/api/project/{project_name}/instances`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.instances import Instance
from dstack.core.schemas.instances import (
    GetInstanceHealthChecksRequest,
    GetInstanceHealthChecksResponse,
    GetInstanceRequest,
    ListInstancesRequest,
)
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Authenticated, Ctx, MemberOf
from dstack.server.operations import instances

router = APIRouter(prefix="/api", tags=["instances"])
PROJECT = "/project/{project_name}/instances"


@router.post("/instances/list", openapi_extra=answering(list[Instance]))
async def list_instances(
    caller: Authenticated, ctx: Ctx, body: Annotated[ListInstancesRequest, JsonBody(ListInstancesRequest)]
) -> Response:
    return answers.models(await instances.list_instances(ctx, caller, body))


@router.post(f"{PROJECT}/get", openapi_extra=answering(Instance))
async def get_instance(
    at: MemberOf, ctx: Ctx, body: Annotated[GetInstanceRequest, JsonBody(GetInstanceRequest)]
) -> Response:
    return answers.model(await instances.get_instance(ctx, at, body.id))


@router.post(f"{PROJECT}/get_instance_health_checks", openapi_extra=answering(GetInstanceHealthChecksResponse))
async def get_instance_health_checks(
    at: MemberOf,
    ctx: Ctx,
    body: Annotated[GetInstanceHealthChecksRequest, JsonBody(GetInstanceHealthChecksRequest)],
) -> Response:
    checks = await instances.list_health_checks(ctx, at, body)
    return answers.model(GetInstanceHealthChecksResponse(health_checks=checks))

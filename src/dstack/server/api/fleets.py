"""`/api/fleets` and `/api/project/{project_name}/fleets`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.fleets import Fleet, FleetPlan
from dstack.core.schemas.fleets import (
    ApplyFleetPlanRequest,
    DeleteFleetInstancesRequest,
    DeleteFleetsRequest,
    GetFleetPlanRequest,
    GetFleetRequest,
    ListFleetsRequest,
    ListProjectFleetsRequest,
)
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Authenticated, CallerOf, Ctx, MemberOf
from dstack.server.operations import fleets

router = APIRouter(prefix="/api", tags=["fleets"])
PROJECT = "/project/{project_name}/fleets"


@router.post("/fleets/list", openapi_extra=answering(list[Fleet]))
async def list_fleets(
    caller: Authenticated, ctx: Ctx, body: Annotated[ListFleetsRequest, JsonBody(ListFleetsRequest)]
) -> Response:
    return answers.models(await fleets.list_fleets(ctx, caller, body))


@router.post(f"{PROJECT}/list", openapi_extra=answering(list[Fleet]))
async def list_project_fleets(
    at: MemberOf,
    ctx: Ctx,
    body: Annotated[ListProjectFleetsRequest | None, JsonBody(ListProjectFleetsRequest, optional=True)],
) -> Response:
    with_imported = body is not None and body.include_imported
    return answers.models(await fleets.list_project_fleets(ctx, at, with_imported=with_imported))


@router.post(f"{PROJECT}/get", openapi_extra=answering(Fleet))
async def get_fleet(
    at: CallerOf, ctx: Ctx, body: Annotated[GetFleetRequest, JsonBody(GetFleetRequest)]
) -> Response:
    """Also for who may use the fleet by an import of another project."""
    return answers.model(await fleets.get_fleet(ctx, at, name=body.name, id=body.id))


@router.post(f"{PROJECT}/get_plan", openapi_extra=answering(FleetPlan))
async def get_plan(
    at: MemberOf, ctx: Ctx, body: Annotated[GetFleetPlanRequest, JsonBody(GetFleetPlanRequest)]
) -> Response:
    return answers.model(await fleets.get_plan(ctx, at, body.spec))


@router.post(f"{PROJECT}/apply", openapi_extra=answering(Fleet))
async def apply_plan(
    at: MemberOf, ctx: Ctx, body: Annotated[ApplyFleetPlanRequest, JsonBody(ApplyFleetPlanRequest)]
) -> Response:
    return answers.model(await fleets.apply(ctx, at, body))


@router.post(f"{PROJECT}/delete", openapi_extra=answering())
async def delete_fleets(
    at: MemberOf, ctx: Ctx, body: Annotated[DeleteFleetsRequest, JsonBody(DeleteFleetsRequest)]
) -> Response:
    await fleets.delete_fleets(ctx, at, body.names)
    return answers.nothing()


@router.post(f"{PROJECT}/delete_instances", openapi_extra=answering())
async def delete_instances(
    at: MemberOf, ctx: Ctx, body: Annotated[DeleteFleetInstancesRequest, JsonBody(DeleteFleetInstancesRequest)]
) -> Response:
    await fleets.delete_instances(ctx, at, body.name, body.instance_nums)
    return answers.nothing()

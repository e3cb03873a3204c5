"""`/api/project/{project_name}/gateways`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.gateways import Gateway, GatewayPlan
from dstack.core.schemas.gateways import (
    ApplyGatewayPlanRequest,
    CreateGatewayRequest,
    DeleteGatewaysRequest,
    GetGatewayPlanRequest,
    GetGatewayRequest,
    ListGatewaysRequest,
    SetDefaultGatewayRequest,
    SetWildcardDomainRequest,
)
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import AdminOf, CallerOf, Ctx, VisitorOf
from dstack.server.operations import gateways

router = APIRouter(prefix="/api/project/{project_name}/gateways", tags=["gateways"])


@router.post("/list", openapi_extra=answering(list[Gateway]))
async def list_gateways(
    at: VisitorOf,
    ctx: Ctx,
    body: Annotated[ListGatewaysRequest | None, JsonBody(ListGatewaysRequest, optional=True)],
) -> Response:
    with_imported = body is not None and body.include_imported
    return answers.models(await gateways.list_gateways(ctx, at, with_imported=with_imported))


@router.post("/get", openapi_extra=answering(Gateway))
async def get_gateway(
    at: CallerOf, ctx: Ctx, body: Annotated[GetGatewayRequest, JsonBody(GetGatewayRequest)]
) -> Response:
    """Also for who may use the gateway by an import of another project."""
    return answers.model(await gateways.get_gateway(ctx, at, body.name))


@router.post("/get_plan", openapi_extra=answering(GatewayPlan))
async def get_plan(
    at: AdminOf, ctx: Ctx, body: Annotated[GetGatewayPlanRequest, JsonBody(GetGatewayPlanRequest)]
) -> Response:
    return answers.model(await gateways.get_plan(ctx, at, body.spec))


@router.post("/apply", openapi_extra=answering(Gateway))
async def apply_plan(
    at: AdminOf, ctx: Ctx, body: Annotated[ApplyGatewayPlanRequest, JsonBody(ApplyGatewayPlanRequest)]
) -> Response:
    return answers.model(await gateways.apply(ctx, at, body))


@router.post("/create", openapi_extra=answering(Gateway))
async def create_gateway(
    at: AdminOf, ctx: Ctx, body: Annotated[CreateGatewayRequest, JsonBody(CreateGatewayRequest)]
) -> Response:
    return answers.model(await gateways.create_gateway(ctx, at, body.configuration))


@router.post("/delete", openapi_extra=answering())
async def delete_gateways(
    at: AdminOf, ctx: Ctx, body: Annotated[DeleteGatewaysRequest, JsonBody(DeleteGatewaysRequest)]
) -> Response:
    """Names that nothing has are no error, as in the reference."""
    await gateways.delete_gateways(ctx, at, body.names)
    return answers.nothing()


@router.post("/set_default", openapi_extra=answering())
async def set_default(
    at: AdminOf, ctx: Ctx, body: Annotated[SetDefaultGatewayRequest, JsonBody(SetDefaultGatewayRequest)]
) -> Response:
    await gateways.set_default(ctx, at, body.name, body.gateway_project)
    return answers.nothing()


@router.post("/set_wildcard_domain", openapi_extra=answering(Gateway))
async def set_wildcard_domain(
    at: AdminOf, ctx: Ctx, body: Annotated[SetWildcardDomainRequest, JsonBody(SetWildcardDomainRequest)]
) -> Response:
    return answers.model(await gateways.set_wildcard_domain(ctx, at, body.name, body.wildcard_domain))

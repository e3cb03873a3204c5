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
from dstack.server.api.permissions import AdminOf, MemberOf, VisitorOf
from dstack.server.operations import gateways

router = APIRouter(prefix="/api/project/{project_name}/gateways", tags=["gateways"])


@router.post("/list", openapi_extra=answering(list[Gateway]))
async def list_gateways(
    _: VisitorOf, body: Annotated[ListGatewaysRequest | None, JsonBody(ListGatewaysRequest, optional=True)]
) -> Response:
    return answers.models([])


@router.post("/get", openapi_extra=answering(Gateway))
async def get_gateway(at: MemberOf, body: Annotated[GetGatewayRequest, JsonBody(GetGatewayRequest)]) -> Response:
    return answers.model(gateways.get_gateway(at, body.name))


@router.post("/get_plan", openapi_extra=answering(GatewayPlan))
async def get_plan(
    at: AdminOf, body: Annotated[GetGatewayPlanRequest, JsonBody(GetGatewayPlanRequest)]
) -> Response:
    return answers.model(gateways.get_plan(at, body.spec))


@router.post("/apply", openapi_extra=answering(Gateway))
async def apply_plan(
    at: AdminOf, body: Annotated[ApplyGatewayPlanRequest, JsonBody(ApplyGatewayPlanRequest)]
) -> Response:
    return answers.model(gateways.create_gateway(at, body.plan.spec.configuration))


@router.post("/create", openapi_extra=answering(Gateway))
async def create_gateway(
    at: AdminOf, body: Annotated[CreateGatewayRequest, JsonBody(CreateGatewayRequest)]
) -> Response:
    return answers.model(gateways.create_gateway(at, body.configuration))


@router.post("/delete", openapi_extra=answering())
async def delete_gateways(
    _: AdminOf, body: Annotated[DeleteGatewaysRequest, JsonBody(DeleteGatewaysRequest)]
) -> Response:
    """Names that nothing has are no error, as in the reference."""
    return answers.nothing()


@router.post("/set_default", openapi_extra=answering())
async def set_default(
    at: AdminOf, body: Annotated[SetDefaultGatewayRequest, JsonBody(SetDefaultGatewayRequest)]
) -> Response:
    return answers.model(gateways.get_gateway(at, body.name))


@router.post("/set_wildcard_domain", openapi_extra=answering(Gateway))
async def set_wildcard_domain(
    at: AdminOf, body: Annotated[SetWildcardDomainRequest, JsonBody(SetWildcardDomainRequest)]
) -> Response:
    return answers.model(gateways.get_gateway(at, body.name))

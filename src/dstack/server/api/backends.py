"""`/api/backends` and `/api/project/{project_name}/backends`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.backends import BackendConfig, BackendInfoYAML, BackendType
from dstack.core.schemas.backends import (
    CreateBackendYAMLRequest,
    DeleteBackendsRequest,
    UpdateBackendYAMLRequest,
)
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import AdminOf, Ctx, Public
from dstack.server.operations import backends

router = APIRouter(prefix="/api", tags=["backends"])
PROJECT = "/project/{project_name}/backends"


@router.post("/backends/list_types", openapi_extra=answering(list[BackendType]))
async def list_types(_: Public) -> Response:
    return answers.plain([kind.value for kind in backends.list_types()])


@router.post(f"{PROJECT}/create", openapi_extra=answering(BackendConfig))
async def create_backend(
    at: AdminOf, ctx: Ctx, body: Annotated[BackendConfig, JsonBody(BackendConfig)]
) -> Response:
    return answers.model(await backends.create_backend(ctx, at, body))


@router.post(f"{PROJECT}/update", openapi_extra=answering(BackendConfig))
async def update_backend(
    at: AdminOf, ctx: Ctx, body: Annotated[BackendConfig, JsonBody(BackendConfig)]
) -> Response:
    return answers.model(await backends.update_backend(ctx, at, body))


@router.post(f"{PROJECT}/delete", openapi_extra=answering())
async def delete_backends(
    at: AdminOf, ctx: Ctx, body: Annotated[DeleteBackendsRequest, JsonBody(DeleteBackendsRequest)]
) -> Response:
    await backends.delete_backends(ctx, at, body.backends_names)
    return answers.nothing()


@router.post(f"{PROJECT}/{{backend_name}}/config_info", openapi_extra=answering(BackendConfig))
async def get_config(at: AdminOf, ctx: Ctx, backend_name: str) -> Response:
    return answers.model(await backends.get_config(ctx, at, backend_name))


@router.post(f"{PROJECT}/{{backend_name}}/get_yaml", openapi_extra=answering(BackendInfoYAML))
async def get_yaml(at: AdminOf, ctx: Ctx, backend_name: str) -> Response:
    return answers.model(await backends.get_yaml(ctx, at, backend_name))


@router.post(f"{PROJECT}/create_yaml", openapi_extra=answering())
async def create_yaml(
    at: AdminOf, ctx: Ctx, body: Annotated[CreateBackendYAMLRequest, JsonBody(CreateBackendYAMLRequest)]
) -> Response:
    await backends.create_backend(ctx, at, backends.parse_yaml(body.config_yaml))
    return answers.nothing()


@router.post(f"{PROJECT}/update_yaml", openapi_extra=answering())
async def update_yaml(
    at: AdminOf, ctx: Ctx, body: Annotated[UpdateBackendYAMLRequest, JsonBody(UpdateBackendYAMLRequest)]
) -> Response:
    await backends.update_backend(ctx, at, backends.parse_yaml(body.config_yaml))
    return answers.nothing()

"""`/api/project/{project_name}/secrets`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.schemas.secrets import CreateOrUpdateSecretRequest, DeleteSecretsRequest, GetSecretRequest
from dstack.core.secrets import Secret
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Ctx, SecretsOf
from dstack.server.operations import secrets

router = APIRouter(prefix="/api/project/{project_name}/secrets", tags=["secrets"])


@router.post("/list", openapi_extra=answering(list[Secret]))
async def list_secrets(at: SecretsOf, ctx: Ctx) -> Response:
    return answers.models(await secrets.list_secrets(ctx, at))


@router.post("/get", openapi_extra=answering(Secret))
async def get_secret(
    at: SecretsOf, ctx: Ctx, body: Annotated[GetSecretRequest, JsonBody(GetSecretRequest)]
) -> Response:
    return answers.model(await secrets.get_secret(ctx, at, body.name))


@router.post("/create_or_update", openapi_extra=answering(Secret))
async def create_or_update_secret(
    at: SecretsOf, ctx: Ctx, body: Annotated[CreateOrUpdateSecretRequest, JsonBody(CreateOrUpdateSecretRequest)]
) -> Response:
    return answers.model(await secrets.create_or_update_secret(ctx, at, body.name, body.value))


@router.post("/delete", openapi_extra=answering())
async def delete_secrets(
    at: SecretsOf, ctx: Ctx, body: Annotated[DeleteSecretsRequest, JsonBody(DeleteSecretsRequest)]
) -> Response:
    await secrets.delete_secrets(ctx, at, body.secrets_names)
    return answers.nothing()

"""`/api/users/public_keys`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.public_keys import PublicKeyInfo
from dstack.core.schemas.public_keys import AddPublicKeyRequest, DeletePublicKeysRequest
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Authenticated, Ctx, FirstToken
from dstack.server.operations import public_keys

router = APIRouter(prefix="/api/users/public_keys", tags=["users"])


@router.post("/list", openapi_extra=answering(list[PublicKeyInfo]))
async def list_keys(caller: Authenticated, ctx: Ctx) -> Response:
    return answers.models(await public_keys.list_keys(ctx, caller))


@router.post("/add", openapi_extra=answering(PublicKeyInfo))
async def add_key(
    caller: FirstToken, ctx: Ctx, body: Annotated[AddPublicKeyRequest, JsonBody(AddPublicKeyRequest)]
) -> Response:
    return answers.model(await public_keys.add_key(ctx, caller, body))


@router.post("/delete", openapi_extra=answering())
async def delete_keys(
    caller: FirstToken, ctx: Ctx, body: Annotated[DeletePublicKeysRequest, JsonBody(DeletePublicKeysRequest)]
) -> Response:
    await public_keys.delete_keys(ctx, caller, body.ids)
    return answers.nothing()

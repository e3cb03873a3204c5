"""`/api/users/tokens`: named tokens of the caller. An addition to the reference."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.schemas.tokens import CreateTokenRequest, DeleteTokensRequest
from dstack.core.tokens import Token, TokenWithValue
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Ctx, FirstToken
from dstack.server.operations import tokens

router = APIRouter(prefix="/api/users/tokens", tags=["users"])


@router.post("/list", openapi_extra=answering(list[Token]))
async def list_tokens(caller: FirstToken, ctx: Ctx) -> Response:
    return answers.models(await tokens.list_tokens(ctx, caller))


@router.post("/create", openapi_extra=answering(TokenWithValue))
async def create_token(
    caller: FirstToken, ctx: Ctx, body: Annotated[CreateTokenRequest, JsonBody(CreateTokenRequest)]
) -> Response:
    """The only answer that has the token's text."""
    return answers.model(await tokens.create_token(ctx, caller, body))


@router.post("/delete", openapi_extra=answering())
async def delete_tokens(
    caller: FirstToken, ctx: Ctx, body: Annotated[DeleteTokensRequest, JsonBody(DeleteTokensRequest)]
) -> Response:
    await tokens.delete_tokens(ctx, caller, body.names)
    return answers.nothing()

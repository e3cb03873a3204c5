"""`/api/users`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from dstack.core.schemas.users import (
    CreateUserRequest,
    DeleteUsersRequest,
    GetUserRequest,
    ListUsersRequest,
    RefreshTokenRequest,
)
from dstack.core.users import User, UsersInfoList, UserWithCreds
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Authenticated, Ctx, FirstToken, GlobalAdmin, bearer_token
from dstack.server.operations import users

router = APIRouter(prefix="/api/users", tags=["users"])


@router.post("/list", openapi_extra=answering(list[User] | UsersInfoList))
async def list_users(
    caller: Authenticated,
    ctx: Ctx,
    body: Annotated[ListUsersRequest | None, JsonBody(ListUsersRequest, optional=True)],
) -> Response:
    page = body or ListUsersRequest()
    found = await users.list_users(ctx, caller, page)
    return answers.model(found) if page.return_total_count else answers.models(found.users)


@router.post("/get_my_user", openapi_extra=answering(UserWithCreds))
async def get_my_user(caller: Authenticated, ctx: Ctx, request: Request) -> Response:
    """The caller, with keys and the token that was shown."""
    if caller.token is not None:
        return answers.model(await users.get_my_user_as(ctx, caller, bearer_token(request)))
    return answers.Json(await ctx.own_users.get(ctx, caller))


@router.post("/get_user", openapi_extra=answering(UserWithCreds))
async def get_user(
    caller: FirstToken, ctx: Ctx, body: Annotated[GetUserRequest, JsonBody(GetUserRequest)]
) -> Response:
    return answers.model(await users.get_user(ctx, caller, body.username))


@router.post("/create", openapi_extra=answering(User))
async def create_user(
    caller: GlobalAdmin, ctx: Ctx, body: Annotated[CreateUserRequest, JsonBody(CreateUserRequest)]
) -> Response:
    return answers.model(await users.create_user(ctx, caller, body))


@router.post("/update", openapi_extra=answering(User))
async def update_user(
    caller: GlobalAdmin, ctx: Ctx, body: Annotated[CreateUserRequest, JsonBody(CreateUserRequest)]
) -> Response:
    return answers.model(await users.update_user(ctx, caller, body))


@router.post("/refresh_token", openapi_extra=answering(UserWithCreds))
async def refresh_token(
    caller: FirstToken, ctx: Ctx, body: Annotated[RefreshTokenRequest, JsonBody(RefreshTokenRequest)]
) -> Response:
    return answers.model(await users.refresh_token(ctx, caller, body.username))


@router.post("/refresh_ssh_key", openapi_extra=answering(UserWithCreds))
async def refresh_ssh_key(
    caller: FirstToken, ctx: Ctx, body: Annotated[RefreshTokenRequest, JsonBody(RefreshTokenRequest)]
) -> Response:
    return answers.model(await users.refresh_ssh_key(ctx, caller, body.username))


@router.post("/delete", openapi_extra=answering())
async def delete_users(
    caller: GlobalAdmin, ctx: Ctx, body: Annotated[DeleteUsersRequest, JsonBody(DeleteUsersRequest)]
) -> Response:
    await users.delete_users(ctx, caller, body.users)
    return answers.nothing()

"""`/api/project/{project_name}/repos`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from dstack.core.repos import RepoHead, RepoHeadWithCreds
from dstack.core.schemas.repos import DeleteReposRequest, GetRepoRequest, SaveRepoCredsRequest
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Ctx, MemberOf
from dstack.server.api.uploads import read_upload
from dstack.server.operations import repos

router = APIRouter(prefix="/api/project/{project_name}/repos", tags=["repos"])


@router.post("/list", openapi_extra=answering(list[RepoHead]))
async def list_repos(at: MemberOf, ctx: Ctx) -> Response:
    return answers.models(await repos.list_repos(ctx, at))


@router.post("/get", openapi_extra=answering(RepoHeadWithCreds))
async def get_repo(at: MemberOf, ctx: Ctx, body: Annotated[GetRepoRequest, JsonBody(GetRepoRequest)]) -> Response:
    return answers.model(await repos.get_repo(ctx, at, body.repo_id, include_creds=body.include_creds))


@router.post("/init", openapi_extra=answering())
async def init_repo(
    at: MemberOf, ctx: Ctx, body: Annotated[SaveRepoCredsRequest, JsonBody(SaveRepoCredsRequest)]
) -> Response:
    await repos.init_repo(ctx, at, body)
    return answers.nothing()


@router.post("/delete", openapi_extra=answering())
async def delete_repos(
    at: MemberOf, ctx: Ctx, body: Annotated[DeleteReposRequest, JsonBody(DeleteReposRequest)]
) -> Response:
    await repos.delete_repos(ctx, at, body.repos_ids)
    return answers.nothing()


@router.post("/upload_code", openapi_extra=answering())
async def upload_code(at: MemberOf, ctx: Ctx, request: Request, repo_id: str) -> Response:
    """The diff of a working copy, as `multipart/form-data` with one part `file` named by its SHA-256."""
    upload = await read_upload(request, ctx.settings.code_upload_limit)
    await repos.upload_code(ctx, at, repo_id, upload.name, upload.content)
    return answers.nothing()

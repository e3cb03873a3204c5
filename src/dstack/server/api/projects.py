"""`/api/projects`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.projects import Project, ProjectsInfoList
from dstack.core.schemas.projects import (
    AddProjectMemberRequest,
    CreateProjectRequest,
    DeleteProjectsRequest,
    ListProjectsRequest,
    RemoveProjectMemberRequest,
    SetProjectMembersRequest,
    UpdateProjectRequest,
)
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import AdminOf, Authenticated, CallerOf, Ctx, ManagerOf, Unlimited, VisitorOf
from dstack.server.operations import projects

router = APIRouter(prefix="/api/projects", tags=["projects"])


@router.post("/list", openapi_extra=answering(list[Project] | ProjectsInfoList))
async def list_projects(
    caller: Authenticated,
    ctx: Ctx,
    body: Annotated[ListProjectsRequest | None, JsonBody(ListProjectsRequest, optional=True)],
) -> Response:
    page = body or ListProjectsRequest()
    found = await projects.list_projects(ctx, caller, page)
    return answers.model(found) if page.return_total_count else answers.models(found.projects)


@router.post("/list_only_no_fleets", openapi_extra=answering(list[Project]))
async def list_projects_without_fleets(caller: Authenticated, ctx: Ctx) -> Response:
    return answers.models(await projects.list_projects_without_fleets(ctx, caller))


@router.post("/create", openapi_extra=answering(Project))
async def create_project(
    caller: Unlimited, ctx: Ctx, body: Annotated[CreateProjectRequest, JsonBody(CreateProjectRequest)]
) -> Response:
    return answers.model(await projects.create_project(ctx, caller, body))


@router.post("/delete", openapi_extra=answering())
async def delete_projects(
    caller: Unlimited, ctx: Ctx, body: Annotated[DeleteProjectsRequest, JsonBody(DeleteProjectsRequest)]
) -> Response:
    await projects.delete_projects(ctx, caller, body.projects_names)
    return answers.nothing()


@router.post("/{project_name}/get", openapi_extra=answering(Project))
async def get_project(at: VisitorOf, ctx: Ctx) -> Response:
    return answers.model(await projects.get_project(ctx, at))


@router.post("/{project_name}/set_members", openapi_extra=answering(Project))
async def set_members(
    at: ManagerOf, ctx: Ctx, body: Annotated[SetProjectMembersRequest, JsonBody(SetProjectMembersRequest)]
) -> Response:
    return answers.model(await projects.set_members(ctx, at, body.members))


@router.post("/{project_name}/add_members", openapi_extra=answering(Project))
async def add_members(
    at: CallerOf, ctx: Ctx, body: Annotated[AddProjectMemberRequest, JsonBody(AddProjectMemberRequest)]
) -> Response:
    return answers.model(await projects.add_members(ctx, at, body.members))


@router.post("/{project_name}/remove_members", openapi_extra=answering(Project))
async def remove_members(
    at: CallerOf, ctx: Ctx, body: Annotated[RemoveProjectMemberRequest, JsonBody(RemoveProjectMemberRequest)]
) -> Response:
    return answers.model(await projects.remove_members(ctx, at, body.usernames))


@router.post("/{project_name}/update", openapi_extra=answering(Project))
async def update_project(
    at: AdminOf, ctx: Ctx, body: Annotated[UpdateProjectRequest, JsonBody(UpdateProjectRequest)]
) -> Response:
    return answers.model(await projects.update_project(ctx, at, body))

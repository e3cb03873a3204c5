"""`/api/project/{project_name}/templates`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.errors import InvalidRequest
from dstack.core.templates import UITemplate
from dstack.server.api import answers
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Ctx, MemberOf
from dstack.server.operations import projects

router = APIRouter(prefix="/api/project/{project_name}/templates", tags=["templates"])


@router.post("/list", openapi_extra=answering(list[UITemplate]))
async def list_templates(at: MemberOf, ctx: Ctx) -> Response:
    """Those of the project's templates repository; none without one."""
    project = await projects.get_project(ctx, at)
    if project.templates_repo is not None:
        raise InvalidRequest(
            f"This server does not read templates repositories; project {at.project.name!r} names "
            f"{project.templates_repo}: take it away with `reset_templates_repo` of projects/update"
        )
    return answers.models([])

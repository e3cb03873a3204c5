"""`/api/project/{project_name}/gpus`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.schemas.gpus import ListGpusRequest, ListGpusResponse
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Ctx, MemberOf
from dstack.server.operations import gpus

router = APIRouter(prefix="/api/project/{project_name}/gpus", tags=["gpus"])


@router.post("/list", openapi_extra=answering(ListGpusResponse))
async def list_gpus(
    at: MemberOf, ctx: Ctx, body: Annotated[ListGpusRequest, JsonBody(ListGpusRequest)]
) -> Response:
    return answers.model(await gpus.list_gpus(ctx, at, body))

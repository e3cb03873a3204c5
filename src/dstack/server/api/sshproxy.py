"""`/api/sshproxy`: for a separate SSH proxy in front of the server's own SSH door."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.schemas.sshproxy import GetUpstreamRequest, GetUpstreamResponse
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Ctx, SshProxy
from dstack.server.operations import sshproxy

router = APIRouter(prefix="/api/sshproxy", tags=["sshproxy"])


@router.post("/get_upstream", openapi_extra=answering(GetUpstreamResponse))
async def get_upstream(
    _: SshProxy, ctx: Ctx, body: Annotated[GetUpstreamRequest, JsonBody(GetUpstreamRequest)]
) -> Response:
    return answers.model(await sshproxy.get_upstream(ctx, body.id))

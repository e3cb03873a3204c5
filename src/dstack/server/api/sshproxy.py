"""`/api/sshproxy`: for the separate SSH proxy of the reference, which this server does not work with."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.errors import ResourceNotExists
from dstack.core.schemas.sshproxy import GetUpstreamRequest, GetUpstreamResponse
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import SshProxy

router = APIRouter(prefix="/api/sshproxy", tags=["sshproxy"])


@router.post("/get_upstream", openapi_extra=answering(GetUpstreamResponse))
async def get_upstream(_: SshProxy, body: Annotated[GetUpstreamRequest, JsonBody(GetUpstreamRequest)]) -> Response:
    raise ResourceNotExists(f"There is no upstream {body.id!r}")

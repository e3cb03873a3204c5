"""`/api/project/{project_name}/exports` and `imports`: sharing between projects is not part of this server, and
it says so in the way that clients of the reference expect."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.errors import InvalidRequest
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import MemberOf

router = APIRouter(prefix="/api/project/{project_name}", tags=["sharing"])


@router.post("/exports/list", openapi_extra=answering())
async def list_exports(_: MemberOf) -> Response:
    raise InvalidRequest("Exports are not supported by this server")


@router.post("/imports/list", openapi_extra=answering())
async def list_imports(_: MemberOf) -> Response:
    raise InvalidRequest("Imports are not supported by this server")

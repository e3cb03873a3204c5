"""`/api/events`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.events import Event
from dstack.core.schemas.events import ListEventsRequest
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Authenticated, Ctx
from dstack.server.operations import event_lists

router = APIRouter(prefix="/api/events", tags=["events"])


@router.post("/list", openapi_extra=answering(list[Event]))
async def list_events(
    caller: Authenticated, ctx: Ctx, body: Annotated[ListEventsRequest, JsonBody(ListEventsRequest)]
) -> Response:
    return answers.models(await event_lists.list_events(ctx, caller, body))

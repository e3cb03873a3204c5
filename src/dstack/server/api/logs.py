"""`/api/project/{project_name}/logs`."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from dstack.core.logs import JobSubmissionLogs
from dstack.core.models import CoreModel, Timestamp
from dstack.core.schemas.logs import PollLogsRequest
from dstack.server.api import answers
from dstack.server.api.bodies import JsonBody
from dstack.server.api.describe import answers as answering
from dstack.server.api.permissions import Ctx, MemberOf
from dstack.server.api.streams import lines
from dstack.server.operations import logs, watching

router = APIRouter(prefix="/api/project/{project_name}/logs", tags=["logs"])


class FollowLogsRequest(CoreModel):
    """From where to follow the output of a job submission: after `start_time`, or on from `next_token`."""

    run_name: str
    job_submission_id: UUID
    next_token: str | None = None
    start_time: Timestamp | None = None


@router.post("/poll", openapi_extra=answering(JobSubmissionLogs))
async def poll_logs(
    at: MemberOf, ctx: Ctx, body: Annotated[PollLogsRequest, JsonBody(PollLogsRequest)]
) -> Response:
    return answers.model(await logs.poll_logs(ctx, at, body))


@router.post("/follow", openapi_extra=answering(str))
async def follow_logs(
    at: MemberOf, ctx: Ctx, body: Annotated[FollowLogsRequest, JsonBody(FollowLogsRequest)]
) -> Response:
    """Newline-delimited JSON: log events as they are stored, `{"type": "ping"}` while there are none,
    `{"type": "end"}` last.

    An addition to the reference.
    """
    return await lines(
        watching.follow_logs(
            ctx,
            at,
            body.run_name,
            body.job_submission_id,
            start_time=body.start_time,
            next_token=body.next_token,
        )
    )

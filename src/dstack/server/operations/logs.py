"""The output of jobs."""

from __future__ import annotations

from dstack.core.logs import JobSubmissionLogs
from dstack.core.schemas.logs import PollLogsRequest
from dstack.server.operations.context import Context, InProject
from dstack.server.stores.logs.base import LogKey, LogQuery


async def poll_logs(ctx: Context, at: InProject, wanted: PollLogsRequest) -> JobSubmissionLogs:
    """A page; of an unknown run or submission an empty one. Raises InvalidRequest for a bad token."""
    key = LogKey(at.project.name, wanted.run_name, wanted.job_submission_id)
    query = LogQuery(
        start_time=wanted.start_time,
        end_time=wanted.end_time,
        descending=wanted.descending,
        next_token=wanted.next_token,
        limit=wanted.limit,
        diagnose=wanted.diagnose,
    )
    return await ctx.logs.poll(key, query)

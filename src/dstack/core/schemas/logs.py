"""`/api/project/{project_name}/logs`."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.models import CoreModel, Timestamp


class PollLogsRequest(CoreModel):
    """A page of the output of a job submission."""

    run_name: str
    job_submission_id: UUID
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None
    descending: bool = False
    next_token: str | None = None
    limit: int = Field(default=100, ge=0, le=1000)
    diagnose: bool = False

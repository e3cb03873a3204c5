"""`/api/runs` and `/api/project/{project_name}/runs`."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.models import CoreModel, Timestamp
from dstack.core.runs import Run, RunSpec


class ListRunsRequest(CoreModel):
    """A page of runs."""

    project_name: str | None = None
    repo_id: str | None = None
    username: str | None = None
    only_active: bool = False
    include_jobs: bool = True
    job_submissions_limit: int | None = Field(default=None, ge=0, le=10)
    prev_submitted_at: Timestamp | None = None
    prev_run_id: UUID | None = None
    limit: int = Field(default=100, ge=0, le=100)
    ascending: bool = False


class GetRunRequest(CoreModel):
    """A run by name or id."""

    run_name: str | None = None
    id: UUID | None = None


class GetRunPlanRequest(CoreModel):
    """What would applying this do, and where could it run?"""

    run_spec: RunSpec
    max_offers: int | None = Field(default=None, ge=1, le=10000)
    reverse_offers: bool = False
    full_offers: bool = False
    unallocated_resources: bool = False
    for_offers_only: bool = False


class ApplyRunPlanInput(CoreModel):
    """What to apply, and what it was planned against."""

    run_spec: RunSpec
    current_resource: Run | None = None


class ApplyRunPlanRequest(CoreModel):
    """`force`: apply even if the run has changed since."""

    plan: ApplyRunPlanInput
    force: bool


class StopRunsRequest(CoreModel):
    """Runs by name; `abort`: without giving them time."""

    runs_names: list[str]
    abort: bool


class DeleteRunsRequest(CoreModel):
    """Finished runs by name."""

    runs_names: list[str]

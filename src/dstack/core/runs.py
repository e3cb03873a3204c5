"""Runs: a configuration at work."""

import enum
from typing import Any
from uuid import UUID

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dstack.core.configurations.files import AnyRunConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.files import FileArchiveMapping
from dstack.core.jobs import Job, JobPlan, JobSubmission, JobTerminationReason
from dstack.core.models import CoreModel, Timestamp
from dstack.core.plans import ApplyAction
from dstack.core.repos import RunRepoData

__all__ = [
    "ApplyAction",
    "Job",
    "JobPlan",
    "JobSubmission",
    "Run",
    "RunFleet",
    "RunPlan",
    "RunSpec",
    "RunStatus",
    "RunTerminationReason",
    "ServiceModelSpec",
    "ServiceSpec",
]


class RunStatus(str, enum.Enum):
    """Where a run is in its life."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    FAILED = "failed"
    DONE = "done"

    def is_finished(self) -> bool:
        """Whether it never changes again."""
        return self in (RunStatus.TERMINATED, RunStatus.FAILED, RunStatus.DONE)


class RunTerminationReason(str, enum.Enum):
    """Why a run ended."""

    ALL_JOBS_DONE = "all_jobs_done"
    JOB_FAILED = "job_failed"
    RETRY_LIMIT_EXCEEDED = "retry_limit_exceeded"
    SERVER_ERROR = "server_error"
    GATEWAY_ERROR = "gateway_error"
    STOPPED_BY_USER = "stopped_by_user"
    ABORTED_BY_USER = "aborted_by_user"

    @property
    def run_status(self) -> RunStatus:
        """The status that the run ends in."""
        if self is RunTerminationReason.ALL_JOBS_DONE:
            return RunStatus.DONE
        if self in (RunTerminationReason.STOPPED_BY_USER, RunTerminationReason.ABORTED_BY_USER):
            return RunStatus.TERMINATED
        return RunStatus.FAILED

    @property
    def job_reason(self) -> JobTerminationReason:
        """The reason given to the jobs that are ended with the run."""
        if self is RunTerminationReason.ALL_JOBS_DONE:
            return JobTerminationReason.DONE_BY_RUNNER
        if self is RunTerminationReason.STOPPED_BY_USER:
            return JobTerminationReason.TERMINATED_BY_USER
        if self is RunTerminationReason.ABORTED_BY_USER:
            return JobTerminationReason.ABORTED_BY_USER
        return JobTerminationReason.TERMINATED_BY_SERVER

    @property
    def status_message(self) -> str | None:
        """The word for people, where it is not the status itself."""
        return _STATUS_MESSAGES.get(self)


_STATUS_MESSAGES = {
    RunTerminationReason.GATEWAY_ERROR: "gateway error",
    RunTerminationReason.STOPPED_BY_USER: "stopped",
    RunTerminationReason.ABORTED_BY_USER: "aborted",
}


class RunSpec(CoreModel):
    """What was asked for."""

    run_name: str | None = None
    repo_id: str | None = None
    repo_data: RunRepoData | None = None
    repo_code_hash: str | None = None
    repo_dir: str | None = None
    file_archives: list[FileArchiveMapping] = Field(default_factory=list)
    working_dir: str | None = None
    configuration_path: str | None = None
    configuration: AnyRunConfiguration
    profile: Profile | None = None
    ssh_key_pub: str | None = None


class ServiceModelSpec(CoreModel):
    """Where a service's model is called."""

    name: str
    base_url: str
    type: str


class ServiceSpec(CoreModel):
    """Where a service is called."""

    url: str
    model: ServiceModelSpec | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class RunFleet(CoreModel):
    """The fleet that a run's instances are from."""

    id: UUID
    name: str


class Run(CoreModel):
    """A run. `cost` is in dollars so far."""

    id: UUID
    project_name: str
    user: str
    fleet: RunFleet | None = None
    submitted_at: Timestamp
    last_processed_at: Timestamp
    status: RunStatus
    status_message: str = ""
    termination_reason: str | None = None
    run_spec: RunSpec
    jobs: list[Job]
    latest_job_submission: JobSubmission | None = None
    cost: float = 0.0
    service: ServiceSpec | None = None
    service_stats: dict[str, Any] | None = None
    """What `operations.service_stats` tells of a service's requests."""
    deployment_num: int = 0
    error: str | None = None
    deleted: bool | None = None
    next_triggered_at: Timestamp | None = None

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Servers that do not know `service_stats` refuse it: it is sent only when it is set."""
        dumped: dict[str, Any] = handler(self)
        if self.service_stats is None:
            dumped.pop("service_stats", None)
        return dumped


class RunPlan(CoreModel):
    """What applying a run configuration would do."""

    project_name: str
    user: str
    run_spec: RunSpec
    effective_run_spec: RunSpec | None = None
    job_plans: list[JobPlan]
    current_resource: Run | None = None
    action: ApplyAction

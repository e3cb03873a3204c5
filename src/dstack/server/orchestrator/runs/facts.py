"""What is known of a run, and what may be recorded about it: the words that the rules of runs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from dstack.core.configurations.profiles import Retry
from dstack.core.configurations.scaling import ScalingSpec
from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.core.runs import RunStatus, RunTerminationReason
from dstack.server.orchestrator.decision import Key, Kind


@dataclass(frozen=True)
class SubmissionFacts:
    """The latest submission of a job."""

    id: UUID
    replica_num: int
    job_num: int
    submission_num: int
    status: JobStatus
    submitted_at: datetime
    last_processed_at: datetime
    reason: JobTerminationReason | None = None
    terminate_requested: bool = False
    retry: Retry | None = None
    last_provisioned_at: datetime | None = None
    """When the newest submission of this job that had an instance was last processed; None: none ever had one."""
    group: str = "0"
    """Of a service's replicas."""
    deployment_num: int = 0
    registered: bool = False
    """It takes traffic."""
    finished_at: datetime | None = None
    message: str | None = None
    """Why it ended, for people."""

    @property
    def is_ending(self) -> bool:
        """Asked to end, or on its way; what is over is not."""
        if self.status.is_finished():
            return False
        return self.terminate_requested or self.status is JobStatus.TERMINATING

    @property
    def key(self) -> Key:
        return Key(Kind.JOB, self.id)


@dataclass(frozen=True)
class GroupFacts:
    """Replicas of a service that are alike."""

    name: str
    target: int
    """How many there are to be; between `low` and `high`."""
    low: int
    high: int
    scaling: ScalingSpec | None = None


@dataclass(frozen=True)
class Load:
    """What the servers have seen of the requests to a service."""

    since: datetime
    """Since when all of them have counted."""
    requests: Mapping[int, int] = field(default_factory=dict)
    """Answered, by window in seconds."""
    in_flight: int = 0
    mean_in_flight: Mapping[int, float] = field(default_factory=dict)
    """Requests on their way at a time, by window in seconds."""
    waits: Mapping[int, float] = field(default_factory=dict)
    """Mean seconds until answers began, by window in seconds; windows without an answer are missing."""


@dataclass(frozen=True)
class RunSnapshot:
    """All that is known of a run."""

    id: UUID
    project_id: UUID
    run_name: str
    status: RunStatus
    submitted_at: datetime
    jobs: tuple[SubmissionFacts, ...]
    groups: tuple[GroupFacts, ...] = ()
    """Of a service's replicas; a run that is no service has none."""
    deployment_num: int = 0
    is_rolling: bool = False
    """A rollout goes on: what worked before is on record."""
    load: Load | None = None
    """Only for services that scale; None: nothing is known yet."""
    master_done_ends: bool = False
    """`stop_criteria: master-done`."""
    stop_requested: RunTerminationReason | None = None
    termination_reason: RunTerminationReason | None = None
    gateway_error: str | None = None
    """Why no machine of its gateway publishes the service."""
    resubmission_attempt: int = 0
    next_triggered_at: datetime | None = None
    schedule: tuple[str, ...] = ()
    next_trigger_after: datetime | None = None
    """The schedule's next time after now; None without a schedule."""
    priority: int = 0

    @property
    def unfinished(self) -> tuple[SubmissionFacts, ...]:
        return tuple(job for job in self.jobs if not job.status.is_finished())

    @property
    def is_service(self) -> bool:
        return bool(self.groups)

    @property
    def desired_replicas(self) -> int:
        """All groups together."""
        return sum(group.target for group in self.groups) if self.groups else 1

    @property
    def placement_key(self) -> Key:
        return Key(Kind.PLACEMENT, self.project_id)


@dataclass(frozen=True)
class TerminateJobs:
    """A write: asks these submissions to end."""

    ids: tuple[UUID, ...]
    reason: JobTerminationReason


@dataclass(frozen=True)
class SubmitReplicas:
    """A write: new submissions of all jobs of these replicas, as they were."""

    replica_nums: tuple[int, ...]


@dataclass(frozen=True)
class AddReplica:
    """A write: a replica of this group as the run's present spec has it, under a number that is free."""

    replica_num: int
    group: str


@dataclass(frozen=True)
class SetTargets:
    """A write: how many replicas each group is to have from now on."""

    targets: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class StartDeployment:
    """A write: the run begins anew; what its replicas came to before is of no concern any more."""


@dataclass(frozen=True)
class EndRollout:
    """A write: every replica is of the present deployment."""


@dataclass(frozen=True)
class RollBack:
    """A write: the run goes back to the spec that worked, as one more deployment."""

    message: str


@dataclass(frozen=True)
class CountAttempt:
    """A write: one more fruitless attempt (0 resets)."""

    attempt: int


@dataclass(frozen=True)
class SetTrigger:
    """A write: when the schedule starts the run again."""

    at: datetime | None

"""What should happen next to a job submission. Pure; the table is `docs/concepts/runs.md`.

A submission is a task on an agent. Its life: placed on an instance by `placement`, put on the agent, watched
(the host's watcher writes what the agent says into `task`), and ended: stopped if it still runs, its log stored
to the last byte, the task deleted on the host, its blocks of the instance given back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from typing_extensions import assert_never

from dstack.agent import protocol
from dstack.agent.protocol import TaskState
from dstack.core.instances import InstanceStatus, InstanceTerminationReason
from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.server.orchestrator.decision import Decision, Effect, Key, Kind
from dstack.server.orchestrator.jobs.policies import Policies, judge

S = JobStatus
R = JobTerminationReason

UNREACHABLE_GRACE = timedelta(minutes=20)
"""How long a job may be out of sight before it is given up (better B12)."""
ABORT_GRACE = timedelta(minutes=1)
"""How long an aborted job waits for an unreachable host."""
LOOK_AGAIN = timedelta(seconds=30)
"""A safety net under the wake-ups of the watchers."""
DRAIN_AT_LEAST = timedelta(seconds=2)
"""Every server has stopped sending requests to a replica by then, and has told what is still on its way."""
DRAIN_AT_MOST = timedelta(minutes=5)
DRAIN_LOOK = timedelta(seconds=1)
TASK_STATUSES = {protocol.PULLING: S.PULLING, protocol.CREATING: S.PULLING, protocol.RUNNING: S.RUNNING}
"""What the agent's earlier statuses (pending, preparing) say nothing new about."""
PROGRESS = (S.SUBMITTED, S.PROVISIONING, S.PULLING, S.RUNNING)


@dataclass(frozen=True)
class InstanceFacts:
    """The instance that the submission was placed on."""

    id: UUID
    name: str
    status: InstanceStatus
    has_agent: bool
    """Its address is known and its agent has answered."""
    is_spot: bool = False
    termination_reason: str | None = None
    termination_message: str | None = None

    @property
    def is_gone(self) -> bool:
        return self.status in (InstanceStatus.TERMINATING, InstanceStatus.TERMINATED)


@dataclass(frozen=True)
class JobSnapshot:
    """All that is known of a submission."""

    id: UUID
    run_id: UUID
    project_id: UUID
    job_name: str
    status: JobStatus
    submitted_at: datetime
    instance: InstanceFacts | None = None
    capacity_error: str | None = None
    waits_for_capacity_until: datetime | None = None
    """End of the retry window while no capacity is something to wait for; None: it is not."""
    may_start: bool = True
    """The other nodes of the replica are far enough."""
    task: TaskState | None = None
    terminate_requested: JobTerminationReason | None = None
    terminate_message: str | None = None
    termination_reason: JobTerminationReason | None = None
    put_at: datetime | None = None
    """When the agent took the task; what it says of it comes by way of the host's watcher."""
    stop_sent_at: datetime | None = None
    logs_stored: bool = False
    logs_error: str | None = None
    task_removed: bool = False
    unreachable_since: datetime | None = None
    has_volumes: bool = False
    priority: int = 0
    policies: Policies = field(default_factory=Policies)
    is_run_ending: bool = False
    """Nobody waits for its requests any more."""
    is_replica: bool = False
    """Of a service, and requests are to be sent to it."""
    is_ready: bool = True
    """All its probes have succeeded as often as they have to."""
    registered: bool = False
    """It takes traffic."""
    drain_started_at: datetime | None = None
    in_flight: int = 0
    """Requests on their way to it, while it is drained."""

    @property
    def key(self) -> Key:
        return Key(Kind.JOB, self.id)

    @property
    def run_key(self) -> Key:
        return Key(Kind.RUN, self.run_id)

    @property
    def placement_key(self) -> Key:
        return Key(Kind.PLACEMENT, self.project_id)


@dataclass(frozen=True)
class PutTask(Effect):
    """Puts the task on the agent. Its id is on record, so it is safe to repeat."""


@dataclass(frozen=True)
class StopTask(Effect):
    """Asks the agent to end the task; one that it never heard of is recorded as ended."""

    reason: str
    grace_seconds: float | None = None


@dataclass(frozen=True)
class RemoveTask(Effect):
    """Deletes the ended task and its log from the host."""


@dataclass(frozen=True)
class Detach:
    """A write: the instance could not be had, the submission waits for another one."""

    capacity_error: str


@dataclass(frozen=True)
class Release:
    """A write: gives the blocks back and records how the submission ended."""


@dataclass(frozen=True)
class TellOthers:
    """A write: woken are the other jobs of the replica, which may have waited for this one."""


@dataclass(frozen=True)
class Register:
    """A write: the replica takes traffic from now on."""


@dataclass(frozen=True)
class StartDraining:
    """A write: the replica gets no new requests."""


def decide(job: JobSnapshot, now: datetime) -> Decision[JobStatus]:
    """The first thing that holds."""
    match job.status:
        case S.SUBMITTED | S.PROVISIONING | S.PULLING | S.RUNNING:
            return _decide_active(job, now)
        case S.TERMINATING:
            return _decide_terminating(job, now)
        case S.TERMINATED | S.ABORTED | S.FAILED | S.DONE:
            return Decision(job.status)
        case _:
            assert_never(job.status)


def _decide_active(job: JobSnapshot, now: datetime) -> Decision[JobStatus]:
    if job.task is not None and job.task.status == protocol.ENDED:
        return _terminate(job, _reason_of(job.task), job.task.message)
    if job.terminate_requested is not None:
        draining = _drain(job, now) if job.terminate_requested is R.SCALED_DOWN else None
        return draining or _terminate(job, job.terminate_requested, job.terminate_message)
    if job.instance is None:
        return _wait_for_capacity(job, now)
    if job.instance.is_gone:
        return _lost_instance(job, job.instance)
    if job.unreachable_since is not None and now >= job.unreachable_since + UNREACHABLE_GRACE:
        return _give_up(job, job.instance)
    return _advance(job, job.instance, now)


def _drain(job: JobSnapshot, now: datetime) -> Decision[JobStatus] | None:
    """A replica that is not needed any more answers what it was asked; None: it has, or nobody waits for it."""
    started = job.drain_started_at
    if job.status is not S.RUNNING or job.is_run_ending or not (job.registered or started):
        return None
    if started is None:
        return Decision(job.status, writes=(StartDraining(),), look_again_at=now + DRAIN_AT_LEAST)
    if now < started + DRAIN_AT_LEAST:
        return Decision(job.status, look_again_at=started + DRAIN_AT_LEAST)
    if job.in_flight and now < started + DRAIN_AT_MOST:
        return Decision(job.status, look_again_at=now + DRAIN_LOOK)
    return None


def _reason_of(task: TaskState) -> JobTerminationReason:
    try:
        return R(task.reason)
    except ValueError:
        return R.EXECUTOR_ERROR


def _terminate(job: JobSnapshot, reason: JobTerminationReason, message: str | None) -> Decision[JobStatus]:
    return Decision(S.TERMINATING, reason=reason, message=message or None, wake=(job.run_key,), again=True)


def _wait_for_capacity(job: JobSnapshot, now: datetime) -> Decision[JobStatus]:
    """Placement writes why there is none; without an answer, or within the retry window, the job waits on."""
    until = job.waits_for_capacity_until
    if job.capacity_error is None or (until is not None and now < until):
        return Decision(S.SUBMITTED, look_again_at=until if job.capacity_error else None)
    return _terminate(job, R.FAILED_TO_START_DUE_TO_NO_CAPACITY, job.capacity_error)


def _lost_instance(job: JobSnapshot, instance: InstanceFacts) -> Decision[JobStatus]:
    why = instance.termination_message or f"Instance {instance.name} was terminated"
    if job.status is S.SUBMITTED:  # it never came to be
        return Decision(S.SUBMITTED, writes=(Detach(why),), wake=(job.placement_key,), again=True)
    if job.status is S.PROVISIONING and instance.termination_reason == InstanceTerminationReason.NO_OFFERS.value:
        return _terminate(job, R.FAILED_TO_START_DUE_TO_NO_CAPACITY, why)
    if job.status is S.PROVISIONING:
        return _terminate(job, R.WAITING_INSTANCE_LIMIT_EXCEEDED, why)
    return _give_up(job, instance, why)


def _give_up(job: JobSnapshot, instance: InstanceFacts, why: str | None = None) -> Decision[JobStatus]:
    reason = R.INTERRUPTED_BY_NO_CAPACITY if instance.is_spot else R.INSTANCE_UNREACHABLE
    minutes = int(UNREACHABLE_GRACE.total_seconds() // 60)
    return _terminate(job, reason, why or f"Instance {instance.name} could not be reached for {minutes} minutes")


def _advance(job: JobSnapshot, instance: InstanceFacts, now: datetime) -> Decision[JobStatus]:
    if instance.status is InstanceStatus.PENDING:  # placed, but not yet granted by the backend
        return Decision(S.SUBMITTED)
    if job.task is None:
        return _start(job, instance, now)
    status = TASK_STATUSES.get(job.task.status, S.PROVISIONING)
    if PROGRESS.index(status) < PROGRESS.index(job.status):
        status = job.status
    changed = status is not job.status
    registers = status is S.RUNNING and job.is_replica and job.is_ready and not job.registered
    writes = ((TellOthers(),) if changed else ()) + ((Register(),) if registers else ())
    look_again_at = None if job.unreachable_since is None else job.unreachable_since + UNREACHABLE_GRACE
    if not changed and status is S.RUNNING and job.unreachable_since is None:
        verdict = judge(job.policies, now)
        if verdict.reason is not None:
            return _terminate(job, verdict.reason, verdict.message)
        look_again_at = verdict.look_again_at
    return Decision(
        status,
        writes=writes,
        wake=(job.run_key,) if writes else (),
        look_again_at=look_again_at,
        again=changed and status is S.RUNNING,
    )


def _start(job: JobSnapshot, instance: InstanceFacts, now: datetime) -> Decision[JobStatus]:
    changed = job.status is S.SUBMITTED
    is_due = instance.has_agent and job.may_start and _is_due(job.put_at, now)
    return Decision(
        S.PROVISIONING,
        writes=(TellOthers(),) if changed else (),
        effects=(PutTask(),) if is_due else (),
        wake=(job.run_key,) if changed else (),
        look_again_at=now + LOOK_AGAIN,
    )


def _is_due(done_at: datetime | None, now: datetime) -> bool:
    """Not done, or so long ago without an effect that it is repeated."""
    return done_at is None or now >= done_at + LOOK_AGAIN


def _decide_terminating(job: JobSnapshot, now: datetime) -> Decision[JobStatus]:
    instance = job.instance
    if instance is None or instance.is_gone or job.task_removed:
        return _finish(job)
    has_ended = job.task is not None and job.task.status == protocol.ENDED
    if job.unreachable_since is not None and now >= _give_up_at(job, job.unreachable_since):
        return _finish(job)
    if not instance.has_agent:
        return _finish(job) if job.task is None else Decision(S.TERMINATING, look_again_at=now + LOOK_AGAIN)
    if not has_ended and _is_due(job.stop_sent_at, now):
        return Decision(S.TERMINATING, effects=(_stop_task(job),), look_again_at=now + LOOK_AGAIN)
    if not has_ended or not job.logs_stored:
        return Decision(S.TERMINATING, message=job.logs_error, look_again_at=now + LOOK_AGAIN)
    return Decision(S.TERMINATING, effects=(RemoveTask(),), look_again_at=now + LOOK_AGAIN, again=True)


def _give_up_at(job: JobSnapshot, since: datetime) -> datetime:
    return since + (ABORT_GRACE if job.termination_reason is R.ABORTED_BY_USER else UNREACHABLE_GRACE)


def _stop_task(job: JobSnapshot) -> StopTask:
    reason = job.termination_reason or R.TERMINATED_BY_SERVER
    return StopTask(reason.value, grace_seconds=0 if reason is R.ABORTED_BY_USER else None)


def _finish(job: JobSnapshot) -> Decision[JobStatus]:
    reason = job.termination_reason or R.TERMINATED_BY_SERVER
    wake = [job.run_key, job.placement_key]
    if job.instance is not None:
        wake.append(Key(Kind.INSTANCE, job.instance.id))
    return Decision(reason.job_status, reason=reason, writes=(Release(),), wake=tuple(wake))

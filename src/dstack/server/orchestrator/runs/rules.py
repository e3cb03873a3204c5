"""What should happen next to a run, given the latest submission of each of its jobs. Pure.

The order of the cases is that of the table in `docs/concepts/runs.md`: the first that holds decides.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from typing_extensions import assert_never

from dstack.core.configurations.profiles import Retry, RetryEvent
from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.core.runs import RunStatus, RunTerminationReason
from dstack.server.orchestrator.decision import Decision, Key, Kind

S = RunStatus
J = JobStatus
R = RunTerminationReason

RETRY_DELAYS = tuple(timedelta(seconds=seconds) for seconds in (15, 30, 60, 120, 300, 600))
"""Before each resubmission; the last one is used from then on."""


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

    @property
    def key(self) -> Key:
        return Key(Kind.JOB, self.id)


@dataclass(frozen=True)
class RunSnapshot:
    """All that is known of a run."""

    id: UUID
    project_id: UUID
    run_name: str
    status: RunStatus
    submitted_at: datetime
    jobs: tuple[SubmissionFacts, ...]
    desired_replicas: int = 1
    is_service: bool = False
    master_done_ends: bool = False
    """`stop_criteria: master-done`."""
    stop_requested: RunTerminationReason | None = None
    termination_reason: RunTerminationReason | None = None
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
    def placement_key(self) -> Key:
        return Key(Kind.PLACEMENT, self.project_id)


@dataclass(frozen=True)
class TerminateJobs:
    """A write: asks these submissions to end."""

    ids: tuple[UUID, ...]
    reason: JobTerminationReason


@dataclass(frozen=True)
class SubmitReplicas:
    """A write: new submissions of all jobs of these replicas."""

    replica_nums: tuple[int, ...]


@dataclass(frozen=True)
class CountAttempt:
    """A write: one more fruitless attempt (0 resets)."""

    attempt: int


@dataclass(frozen=True)
class SetTrigger:
    """A write: when the schedule starts the run again."""

    at: datetime | None


class Contribution(enum.Enum):
    """What a latest submission says about its run."""

    DONE = "done"
    NOTHING = "nothing"
    RUNNING = "running"
    PROVISIONING = "provisioning"
    SUBMITTED = "submitted"
    RETRY = "retry"
    FAILED = "failed"
    LIMIT_EXCEEDED = "limit_exceeded"


C = Contribution


def decide(run: RunSnapshot, now: datetime) -> Decision[RunStatus]:
    """The first thing that holds."""
    match run.status:
        case S.TERMINATED | S.FAILED | S.DONE:
            return Decision(run.status)
        case S.TERMINATING:
            return _decide_terminating(run, now)
        case S.PENDING | S.SUBMITTED | S.PROVISIONING | S.RUNNING:
            if run.stop_requested is not None:
                return _terminate(run, run.stop_requested)
            return _decide_pending(run, now) if run.status is S.PENDING else _decide_active(run, now)
        case _:
            assert_never(run.status)


def _terminate(run: RunSnapshot, reason: RunTerminationReason) -> Decision[RunStatus]:
    """The jobs are asked at once; the run becomes terminal when all of them are."""
    asked = _not_asked(run.unfinished)
    writes = (TerminateJobs(tuple(job.id for job in asked), reason.job_reason),) if asked else ()
    return Decision(
        S.TERMINATING,
        reason=reason,
        writes=writes,
        wake=tuple(job.key for job in asked),
        again=not run.unfinished,
    )


def _not_asked(jobs: Iterable[SubmissionFacts]) -> list[SubmissionFacts]:
    return [job for job in jobs if not job.terminate_requested and job.status is not J.TERMINATING]


def _decide_terminating(run: RunSnapshot, now: datetime) -> Decision[RunStatus]:
    reason = run.termination_reason or R.SERVER_ERROR
    if run.unfinished:
        asked = _not_asked(run.unfinished)
        writes = (TerminateJobs(tuple(job.id for job in asked), reason.job_reason),) if asked else ()
        return Decision(S.TERMINATING, writes=writes, wake=tuple(job.key for job in asked))
    if run.next_trigger_after is not None and reason not in (R.STOPPED_BY_USER, R.ABORTED_BY_USER):
        at = run.next_trigger_after
        return Decision(S.PENDING, writes=(SetTrigger(at), CountAttempt(0)), look_again_at=at)
    return Decision(reason.run_status, reason=reason)


def _decide_pending(run: RunSnapshot, now: datetime) -> Decision[RunStatus]:
    if run.next_triggered_at is not None:
        if now < run.next_triggered_at:
            return Decision(S.PENDING, look_again_at=run.next_triggered_at)
        return _submit(run, tuple(range(run.desired_replicas)), SetTrigger(None))
    if run.unfinished:  # the submissions before must have ended: never two instances for one job
        return Decision(S.PENDING)
    if run.is_service and run.desired_replicas == 0:
        return Decision(S.PENDING)
    replicas = _replicas_to_start(run)
    if not replicas:
        return _terminate(run, R.ALL_JOBS_DONE)
    due = _retry_due_at(run)
    if due is not None and now < due:
        return Decision(S.PENDING, look_again_at=due)
    return _submit(run, replicas)


def _replicas_to_start(run: RunSnapshot) -> tuple[int, ...]:
    """Those whose jobs did not all end well; at least one for a run that has none yet."""
    if not run.jobs or run.is_service:
        return tuple(range(max(run.desired_replicas, 0)))
    failed = {job.replica_num for job in run.jobs if job.status is not J.DONE}
    return tuple(sorted(failed))


def _retry_due_at(run: RunSnapshot) -> datetime | None:
    """After an attempt without capacity nothing is waited for: the queue of placement does that (better B11)."""
    ended = [job for job in run.jobs if job.status.is_finished() and job.status is not J.DONE]
    if run.resubmission_attempt == 0 or not ended:
        return None
    if all(job.reason is JobTerminationReason.FAILED_TO_START_DUE_TO_NO_CAPACITY for job in ended):
        return None
    delay = RETRY_DELAYS[min(run.resubmission_attempt, len(RETRY_DELAYS)) - 1]
    return max(job.last_processed_at for job in ended) + delay


def _submit(run: RunSnapshot, replicas: tuple[int, ...], *writes: SetTrigger) -> Decision[RunStatus]:
    return Decision(
        S.SUBMITTED,
        writes=(SubmitReplicas(replicas), *writes),
        wake=(run.placement_key,),
    )


def classify(run: RunSnapshot, job: SubmissionFacts, now: datetime) -> Contribution:
    """What the submission contributes to the run's status (reference: lifecycle, section 5)."""
    if job.status is J.DONE or (job.status is J.TERMINATING and job.reason is JobTerminationReason.DONE_BY_RUNNER):
        return C.DONE
    if job.reason is JobTerminationReason.SCALED_DOWN:
        return C.NOTHING
    if job.status is J.RUNNING:
        return C.RUNNING
    if job.status in (J.PROVISIONING, J.PULLING):
        return C.PROVISIONING
    if job.status is J.SUBMITTED:
        return C.SUBMITTED
    return _classify_ended(run, job, now)


def _classify_ended(run: RunSnapshot, job: SubmissionFacts, now: datetime) -> Contribution:
    event = None if job.reason is None else job.reason.retry_event
    if event is None and job.terminate_requested and _is_replica_retried(run, job, now):
        return C.RETRY
    if event is None or job.retry is None or event not in job.retry.on_events:
        return C.FAILED
    since = _window_start(run, job, event)
    if since is None:
        return C.FAILED
    is_open = now < since + timedelta(seconds=job.retry.duration)
    return C.RETRY if is_open else C.LIMIT_EXCEEDED


def _window_start(run: RunSnapshot, job: SubmissionFacts, event: RetryEvent) -> datetime | None:
    if job.last_provisioned_at is not None:
        return job.last_provisioned_at
    return run.submitted_at if event is RetryEvent.NO_CAPACITY else None


def _is_replica_retried(run: RunSnapshot, job: SubmissionFacts, now: datetime) -> bool:
    """Whether it was ended by the server only because another node of its replica is to be retried."""
    if job.reason is not JobTerminationReason.TERMINATED_BY_SERVER:
        return False
    others = [other for other in run.jobs if other.replica_num == job.replica_num and other.id != job.id]
    return any(
        other.reason is not None
        and other.reason.retry_event is not None
        and _classify_ended(run, other, now) is C.RETRY
        for other in others
        if other.status.is_finished() or other.status is J.TERMINATING
    )


def _decide_active(run: RunSnapshot, now: datetime) -> Decision[RunStatus]:
    said = [(job, classify(run, job, now)) for job in run.jobs]
    found = {contribution for _, contribution in said}
    if C.FAILED in found:
        return _terminate(run, R.JOB_FAILED)
    if C.LIMIT_EXCEEDED in found:
        return _terminate(run, R.RETRY_LIMIT_EXCEEDED)
    if run.master_done_ends and any(c is C.DONE and job.job_num == 0 for job, c in said):
        return _terminate(run, R.ALL_JOBS_DONE)
    retried = tuple(sorted({job.replica_num for job, c in said if c is C.RETRY}))
    living = [c for job, c in said if job.replica_num not in retried]
    for contribution, status in _ACTIVE:
        if contribution in living:
            return _stay_active(run, status, retried)
    if found == {C.DONE}:
        return _terminate(run, R.ALL_JOBS_DONE)
    return _back_to_pending(run, retried)


_ACTIVE = ((C.RUNNING, S.RUNNING), (C.PROVISIONING, S.PROVISIONING), (C.SUBMITTED, S.SUBMITTED))


def _stay_active(run: RunSnapshot, status: RunStatus, retried: tuple[int, ...]) -> Decision[RunStatus]:
    """Replicas to be retried are submitted anew beside the living ones, once their last jobs have ended."""
    writes: list[object] = []
    wake: list[Key] = []
    unfinished = [job for job in run.unfinished if job.replica_num in retried]
    asked = _not_asked(unfinished)
    if asked:
        ids = tuple(job.id for job in asked)
        writes.append(TerminateJobs(ids, JobTerminationReason.TERMINATED_BY_SERVER))
    ended = tuple(num for num in retried if all(job.replica_num != num for job in unfinished))
    if ended:
        writes.append(SubmitReplicas(ended))
        wake.append(run.placement_key)
    if status in (S.PROVISIONING, S.RUNNING) and run.resubmission_attempt:
        writes.append(CountAttempt(0))
    writes += _scale(run, wake)
    return Decision(status, writes=tuple(writes), wake=(*wake, *(job.key for job in asked)))


def _scale(run: RunSnapshot, wake: list[Key]) -> list[object]:
    """Brings the replicas of a service to the desired number: the lowest numbers that are free, the highest go."""
    if not run.is_service:
        return []
    taken = sorted({job.replica_num for job in run.jobs if not job.status.is_finished()} | _retrying(run))
    if len(taken) < run.desired_replicas:
        free = (num for num in range(run.desired_replicas + len(taken)) if num not in taken)
        added = tuple(next(free) for _ in range(run.desired_replicas - len(taken)))
        wake.append(run.placement_key)
        return [SubmitReplicas(added)]
    surplus = _not_asked(job for job in run.unfinished if job.replica_num in taken[run.desired_replicas :])
    wake += [job.key for job in surplus]
    if not surplus:
        return []
    return [TerminateJobs(tuple(job.id for job in surplus), JobTerminationReason.SCALED_DOWN)]


def _retrying(run: RunSnapshot) -> set[int]:
    """Replicas whose jobs ended otherwise than by scaling: they are retried or end the run, not replaced here."""
    scaled = JobTerminationReason.SCALED_DOWN
    return {job.replica_num for job in run.jobs if job.status.is_finished() and job.reason is not scaled}


def _back_to_pending(run: RunSnapshot, retried: Sequence[int]) -> Decision[RunStatus]:
    asked = _not_asked(job for job in run.unfinished if job.replica_num in retried)
    writes: list[object] = [CountAttempt(run.resubmission_attempt + 1)] if retried else []
    if asked:
        ids = tuple(job.id for job in asked)
        writes.append(TerminateJobs(ids, JobTerminationReason.TERMINATED_BY_SERVER))
    return Decision(
        S.PENDING, writes=tuple(writes), wake=tuple(job.key for job in asked), again=not run.unfinished
    )

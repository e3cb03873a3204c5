"""What should happen next to a run, given the latest submission of each of its jobs. Pure.

The order of the cases is that of the table in `docs/concepts/runs.md`: the first that holds decides.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from typing_extensions import assert_never

from dstack.core.configurations.profiles import RetryEvent
from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.core.runs import RunStatus, RunTerminationReason
from dstack.server.orchestrator.decision import Decision, Key
from dstack.server.orchestrator.runs import autoscaling, replicas
from dstack.server.orchestrator.runs.facts import (
    CountAttempt,
    RollBack,
    RunSnapshot,
    SetTargets,
    SetTrigger,
    StartDeployment,
    SubmissionFacts,
    SubmitReplicas,
    TerminateJobs,
)
from dstack.server.orchestrator.runs.replicas import not_asked

S = RunStatus
J = JobStatus
R = RunTerminationReason

RETRY_DELAYS = tuple(timedelta(seconds=seconds) for seconds in (15, 30, 60, 120, 300, 600))
"""Before each resubmission; the last one is used from then on."""


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
            return _decide_living(run, now)
        case _:
            assert_never(run.status)


def _decide_living(run: RunSnapshot, now: datetime) -> Decision[RunStatus]:
    targets, look_again_at = autoscaling.scale(run, now)
    wanted = tuple((group.name, target) for group, target in zip(run.groups, targets, strict=True))
    is_scaled = wanted != tuple((group.name, group.target) for group in run.groups)
    if is_scaled:
        groups = tuple(replace(group, target=target) for group, target in zip(run.groups, targets, strict=True))
        run = replace(run, groups=groups)
    decision = _decide_pending(run, now) if run.status is S.PENDING else _decide_active(run, now)
    if is_scaled:
        decision = replace(decision, writes=(SetTargets(wanted), *decision.writes))
    if look_again_at is not None:
        earlier = decision.look_again_at
        decision = replace(decision, look_again_at=min(earlier or look_again_at, look_again_at))
    return decision


def _terminate(run: RunSnapshot, reason: RunTerminationReason) -> Decision[RunStatus]:
    """The jobs are asked at once; the run becomes terminal when all of them are."""
    asked = not_asked(run.unfinished)
    writes = (TerminateJobs(tuple(job.id for job in asked), reason.job_reason),) if asked else ()
    return Decision(
        S.TERMINATING,
        reason=reason,
        writes=writes,
        wake=tuple(job.key for job in asked),
        again=not run.unfinished,
    )


def _decide_terminating(run: RunSnapshot, now: datetime) -> Decision[RunStatus]:
    reason = run.termination_reason or R.SERVER_ERROR
    if run.unfinished:
        asked = not_asked(run.unfinished)
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
        return _start_on_time(run)
    failed = _replicas_to_retry(run)
    if not failed and run.is_service:
        return _start(run) if run.desired_replicas else Decision(S.PENDING, writes=replicas.end_rollout(run))
    if run.unfinished:  # the submissions before must have ended: never two instances for one job
        return Decision(S.PENDING)
    if not failed and run.jobs:
        return _terminate(run, R.ALL_JOBS_DONE)
    due = _retry_due_at(run)
    if due is not None and now < due:
        return Decision(S.PENDING, look_again_at=due)
    return _submit(run, failed or (0,))


def _start_on_time(run: RunSnapshot) -> Decision[RunStatus]:
    """A schedule's time has come. A service begins a deployment: it may have had other replicas the last time."""
    if not run.is_service:
        return _submit(run, (0,), SetTrigger(None))
    started = _start(replace(run, deployment_num=run.deployment_num + 1))
    return replace(started, writes=(StartDeployment(), *started.writes, SetTrigger(None)))


def _start(run: RunSnapshot) -> Decision[RunStatus]:
    """Of a service that has nothing to retry."""
    added = replicas.add_all(run)
    return Decision(S.SUBMITTED, writes=added, wake=(run.placement_key,) if added else ())


def _replicas_to_retry(run: RunSnapshot) -> tuple[int, ...]:
    """Those whose jobs did not all end well, and are neither scaled down nor of an earlier deployment."""
    dropped = JobTerminationReason.SCALED_DOWN
    failed = [job for job in run.jobs if job.status is not J.DONE and job.reason is not dropped]
    return tuple(sorted({job.replica_num for job in failed if not replicas.is_superseded(run, job)}))


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
    said = [(job, _contribution(run, job, now)) for job in run.jobs]
    found = {contribution for _, contribution in said}
    if run.is_rolling and (broken := _broken(run, said)) is not None and replicas.has_working(run):
        return _roll_back(run, broken)
    if C.FAILED in found:
        return _terminate(run, R.JOB_FAILED)
    if C.LIMIT_EXCEEDED in found:
        return _terminate(run, R.RETRY_LIMIT_EXCEEDED)
    if run.gateway_error is not None:
        return replace(_terminate(run, R.GATEWAY_ERROR), message=run.gateway_error)
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


def _contribution(run: RunSnapshot, job: SubmissionFacts, now: datetime) -> Contribution:
    """A replica of an earlier deployment that is over is not missed: what is missing is started anew."""
    contribution = classify(run, job, now)
    if not replicas.is_outdated(run, job):
        return contribution
    if contribution is C.RETRY and not run.is_rolling:
        return C.NOTHING
    return C.NOTHING if contribution in (C.FAILED, C.LIMIT_EXCEEDED, C.DONE) else contribution


def _broken(run: RunSnapshot, said: Sequence[tuple[SubmissionFacts, Contribution]]) -> SubmissionFacts | None:
    """A replica of the deployment that is rolled out that has ended and is not to be retried."""
    ends = (C.FAILED, C.LIMIT_EXCEEDED, C.DONE)
    return next((job for job, c in said if c in ends and job.deployment_num == run.deployment_num), None)


def _roll_back(run: RunSnapshot, broken: SubmissionFacts) -> Decision[RunStatus]:
    """Replicas that work stay; those of the failed deployment are outdated from now on (better B8)."""
    why = broken.message or (broken.reason.value if broken.reason is not None else "it ended")
    message = f"Deployment {run.deployment_num} failed: replica {broken.replica_num} ended ({why})"
    return Decision(run.status, writes=(RollBack(f"{message}; the run stays on the version before"),), again=True)


_ACTIVE = ((C.RUNNING, S.RUNNING), (C.PROVISIONING, S.PROVISIONING), (C.SUBMITTED, S.SUBMITTED))


def _stay_active(run: RunSnapshot, status: RunStatus, retried: tuple[int, ...]) -> Decision[RunStatus]:
    """Replicas to be retried are submitted anew beside the living ones, once their last jobs have ended."""
    writes: list[object] = []
    wake: list[Key] = []
    unfinished = [job for job in run.unfinished if job.replica_num in retried]
    asked = not_asked(unfinished)
    if asked:
        ids = tuple(job.id for job in asked)
        writes.append(TerminateJobs(ids, JobTerminationReason.TERMINATED_BY_SERVER))
    ended = tuple(num for num in retried if all(job.replica_num != num for job in unfinished))
    if ended:
        writes.append(SubmitReplicas(ended))
        wake.append(run.placement_key)
    if status in (S.PROVISIONING, S.RUNNING) and run.resubmission_attempt:
        writes.append(CountAttempt(0))
    if run.is_service:
        plan = replicas.plan(run, retried)
        writes += plan.writes
        wake += plan.wake
    return Decision(status, writes=tuple(writes), wake=(*wake, *(job.key for job in asked)))


def _back_to_pending(run: RunSnapshot, retried: Sequence[int]) -> Decision[RunStatus]:
    asked = not_asked(job for job in run.unfinished if job.replica_num in retried)
    writes: list[object] = [CountAttempt(run.resubmission_attempt + 1)] if retried else []
    if asked:
        ids = tuple(job.id for job in asked)
        writes.append(TerminateJobs(ids, JobTerminationReason.TERMINATED_BY_SERVER))
    return Decision(
        S.PENDING, writes=tuple(writes), wake=tuple(job.key for job in asked), again=not run.unfinished
    )

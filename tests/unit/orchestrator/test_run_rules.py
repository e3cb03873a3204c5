"""What happens next to a run, as a table (reference: lifecycle, sections 3, 5, 6 and 17)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from dstack.core.configurations.profiles import Retry, RetryEvent
from dstack.core.jobs import JobStatus as J
from dstack.core.jobs import JobTerminationReason as JR
from dstack.core.runs import RunStatus as S
from dstack.core.runs import RunTerminationReason as R
from dstack.server.orchestrator.runs import rules
from dstack.server.orchestrator.runs.facts import (
    AddReplica,
    CountAttempt,
    GroupFacts,
    RunSnapshot,
    SetTrigger,
    SubmissionFacts,
    SubmitReplicas,
    TerminateJobs,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
RETRY = Retry(on_events=list(RetryEvent), duration=3600)


def job(status: J, reason: JR | None = None, num: int = 0, replica: int = 0, **more: Any) -> SubmissionFacts:
    return SubmissionFacts(UUID(int=100 * replica + num + 1), replica, num, 0, status, NOW, NOW, reason, **more)


def run(*jobs: SubmissionFacts, status: S = S.RUNNING, **more: Any) -> RunSnapshot:
    return RunSnapshot(UUID(int=1), UUID(int=2), "r", status, NOW, jobs, **more)


FAILED = JR.CONTAINER_EXITED_WITH_ERROR
DONE = JR.DONE_BY_RUNNER
TABLE: list[tuple[str, RunSnapshot, S, R | None]] = [
    ("a failed job", run(job(J.FAILED, FAILED), job(J.RUNNING, num=1)), S.TERMINATING, R.JOB_FAILED),
    ("max_duration", run(job(J.TERMINATED, JR.MAX_DURATION_EXCEEDED)), S.TERMINATING, R.JOB_FAILED),
    (
        "window over",
        run(job(J.FAILED, FAILED, retry=RETRY, last_provisioned_at=NOW - timedelta(hours=1))),
        S.TERMINATING,
        R.RETRY_LIMIT_EXCEEDED,
    ),
    ("never provisioned", run(job(J.FAILED, FAILED, retry=RETRY)), S.TERMINATING, R.JOB_FAILED),
    (
        "master done",
        run(job(J.DONE, DONE), job(J.RUNNING, num=1), master_done_ends=True),
        S.TERMINATING,
        R.ALL_JOBS_DONE,
    ),
    ("one runs", run(job(J.DONE, DONE), job(J.RUNNING, num=1), status=S.SUBMITTED), S.RUNNING, None),
    ("one pulls", run(job(J.PULLING), job(J.SUBMITTED, num=1), status=S.SUBMITTED), S.PROVISIONING, None),
    ("none placed", run(job(J.SUBMITTED), status=S.SUBMITTED), S.SUBMITTED, None),
    ("all done", run(job(J.TERMINATING, DONE), job(J.DONE, DONE, num=1)), S.TERMINATING, R.ALL_JOBS_DONE),
    ("to retry", run(job(J.FAILED, FAILED, retry=RETRY, last_provisioned_at=NOW)), S.PENDING, None),
    ("on no gateway", run(job(J.RUNNING), gateway_error="no DNS"), S.TERMINATING, R.GATEWAY_ERROR),
    ("stopped", run(job(J.RUNNING), stop_requested=R.STOPPED_BY_USER), S.TERMINATING, R.STOPPED_BY_USER),
    (
        "stopped while pending",
        run(status=S.PENDING, stop_requested=R.ABORTED_BY_USER),
        S.TERMINATING,
        R.ABORTED_BY_USER,
    ),
    (
        "its jobs end first",
        run(job(J.TERMINATING, DONE), status=S.TERMINATING, termination_reason=R.ALL_JOBS_DONE),
        S.TERMINATING,
        None,
    ),
    *(
        (f"ends {reason.value}", run(status=S.TERMINATING, termination_reason=reason), reason.run_status, reason)
        for reason in R
    ),
    *((f"terminal {s.value}", run(job(J.RUNNING), status=s), s, None) for s in S if s.is_finished()),
    (
        "scaled to zero",
        run(job(J.TERMINATED, JR.SCALED_DOWN), groups=(GroupFacts("0", 0, 0, 3),)),
        S.PENDING,
        None,
    ),
]


@pytest.mark.parametrize(("known", "status", "reason"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_happens_next(known: RunSnapshot, status: S, reason: R | None) -> None:
    decision = rules.decide(known, NOW)
    assert (decision.status, decision.reason) == (status, reason)


def test_stopping_asks_every_job_once() -> None:
    jobs = (job(J.RUNNING), job(J.DONE, DONE, 1), job(J.PULLING, num=2, terminate_requested=True))
    decision = rules.decide(run(*jobs, stop_requested=R.STOPPED_BY_USER), NOW)
    assert decision.writes == (TerminateJobs((jobs[0].id,), JR.TERMINATED_BY_USER),)
    assert decision.wake == (jobs[0].key,)


def test_retry_waits_longer_each_time_and_for_the_last_submission_to_end() -> None:
    ended = job(J.FAILED, FAILED, retry=RETRY, last_provisioned_at=NOW)
    for attempt, seconds in [(1, 15), (2, 30), (6, 600), (9, 600)]:
        pending = run(ended, status=S.PENDING, resubmission_attempt=attempt)
        assert rules.decide(pending, NOW).look_again_at == NOW + timedelta(seconds=seconds)
        due = rules.decide(pending, NOW + timedelta(seconds=seconds))
        assert (due.status, due.writes) == (S.SUBMITTED, (SubmitReplicas((0,)),))
    still = run(replace(ended, status=J.TERMINATING), status=S.PENDING, resubmission_attempt=1)
    assert rules.decide(still, NOW + timedelta(hours=1)).writes == ()


def test_a_replica_to_retry_is_submitted_beside_the_living_ones() -> None:
    jobs = (job(J.RUNNING), job(J.FAILED, FAILED, replica=1, retry=RETRY, last_provisioned_at=NOW))
    decision = rules.decide(run(*jobs, groups=(GroupFacts("0", 2, 2, 2),)), NOW)
    assert (decision.status, decision.writes) == (S.RUNNING, (SubmitReplicas((1,)),))


def test_a_multi_node_replica_is_retried_as_a_whole() -> None:
    failed = job(J.FAILED, FAILED, retry=RETRY, last_provisioned_at=NOW)
    decision = rules.decide(run(failed, job(J.RUNNING, num=1)), NOW)
    assert decision.status is S.PENDING
    assert decision.writes == (CountAttempt(1), TerminateJobs((UUID(int=2),), JR.TERMINATED_BY_SERVER))
    other = job(J.TERMINATED, JR.TERMINATED_BY_SERVER, num=1, terminate_requested=True, retry=RETRY)
    again = run(failed, other, status=S.PENDING, resubmission_attempt=1)
    assert rules.decide(again, NOW + timedelta(seconds=15)).status is S.SUBMITTED


@pytest.mark.parametrize(
    ("desired", "expected"),
    [(3, (AddReplica(1, "0"), AddReplica(2, "0"))), (0, (TerminateJobs((UUID(int=1),), JR.SCALED_DOWN),))],
)
def test_a_service_is_brought_to_its_replicas(desired: int, expected: tuple[object, ...]) -> None:
    decision = rules.decide(run(job(J.RUNNING), groups=(GroupFacts("0", desired, 0, 3),)), NOW)
    assert decision.writes == expected


def test_a_schedule_starts_the_run_again_unless_it_was_stopped() -> None:
    later = NOW + timedelta(hours=1)
    ended = run(status=S.TERMINATING, termination_reason=R.JOB_FAILED, next_trigger_after=later)
    decision = rules.decide(ended, NOW)
    assert (decision.status, decision.look_again_at) == (S.PENDING, later)
    assert SetTrigger(later) in decision.writes
    stopped = replace(ended, termination_reason=R.STOPPED_BY_USER)
    assert rules.decide(stopped, NOW).status is S.TERMINATED

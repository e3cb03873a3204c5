"""What is retried, for how long, and when a schedule starts a run (reference: lifecycle, sections 4, 6 and 7)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from dstack.core.configurations.profiles import Retry, RetryEvent
from dstack.core.jobs import JobStatus
from dstack.core.jobs import JobTerminationReason as JR
from dstack.core.runs import RunStatus as S
from dstack.core.runs import RunTerminationReason as R
from dstack.server.orchestrator.runs import rules
from dstack.server.orchestrator.runs.facts import (
    CountAttempt,
    RunSnapshot,
    SetTrigger,
    SubmissionFacts,
    SubmitReplicas,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
EVENTS = {
    RetryEvent.NO_CAPACITY: {JR.FAILED_TO_START_DUE_TO_NO_CAPACITY},
    RetryEvent.INTERRUPTION: {JR.INTERRUPTED_BY_NO_CAPACITY},
    RetryEvent.ERROR: {
        JR.INSTANCE_UNREACHABLE,
        JR.INSTANCE_ACCESS_REVOKED,
        JR.WAITING_INSTANCE_LIMIT_EXCEEDED,
        JR.WAITING_RUNNER_LIMIT_EXCEEDED,
        JR.VOLUME_ERROR,
        JR.GATEWAY_ERROR,
        JR.CONTAINER_EXITED_WITH_ERROR,
        JR.PORTS_BINDING_FAILED,
        JR.CREATING_CONTAINER_ERROR,
        JR.EXECUTOR_ERROR,
        JR.LOG_QUOTA_EXCEEDED,
    },
}
FINAL = {JR.DONE_BY_RUNNER, JR.SCALED_DOWN}
"""No failures at all."""


def ended(reason: JR, *events: RetryEvent, provisioned: datetime | None = NOW) -> SubmissionFacts:
    retry = Retry(on_events=list(events), duration=3600) if events else None
    status = reason.job_status
    return SubmissionFacts(
        UUID(int=9), 0, 0, 0, status, NOW, NOW, reason, retry=retry, last_provisioned_at=provisioned
    )


def run(*jobs: SubmissionFacts, status: S = S.RUNNING, **more: Any) -> RunSnapshot:
    return RunSnapshot(UUID(int=1), UUID(int=2), "r", status, NOW, jobs, **more)


@pytest.mark.parametrize("event", [None, *RetryEvent], ids=str)
@pytest.mark.parametrize("reason", sorted(set(JR) - FINAL), ids=lambda reason: str(reason.value))
def test_what_is_retried(reason: JR, event: RetryEvent | None) -> None:
    events = () if event is None else (event,)
    decision = rules.decide(run(ended(reason, *events)), NOW)
    if event is not None and reason in EVENTS[event]:
        assert (decision.status, decision.writes) == (S.PENDING, (CountAttempt(1),))
    else:
        assert (decision.status, decision.reason) == (S.TERMINATING, R.JOB_FAILED)


CAPACITY, ERROR = JR.FAILED_TO_START_DUE_TO_NO_CAPACITY, JR.CONTAINER_EXITED_WITH_ERROR


@pytest.mark.parametrize(
    ("reason", "provisioned", "after", "is_open"),
    [
        (CAPACITY, None, timedelta(minutes=59), True),
        (CAPACITY, None, HOUR, False),
        (CAPACITY, NOW + HOUR, HOUR + timedelta(minutes=59), True),
        (CAPACITY, NOW + HOUR, 2 * HOUR, False),
        (ERROR, NOW + HOUR, HOUR + timedelta(minutes=59), True),
        (ERROR, NOW + HOUR, 2 * HOUR, False),
    ],
)
def test_for_how_long(reason: JR, provisioned: datetime | None, after: timedelta, is_open: bool) -> None:
    """From the submission of the run, or else from when its job was last alive."""
    job = ended(reason, *RetryEvent, provisioned=provisioned)
    decision = rules.decide(run(job), NOW + after)
    assert decision.status is (S.PENDING if is_open else S.TERMINATING)
    assert is_open or decision.reason is R.RETRY_LIMIT_EXCEEDED


def test_what_never_ran_is_retried_for_want_of_capacity_only() -> None:
    decision = rules.decide(run(ended(ERROR, *RetryEvent, provisioned=None)), NOW)
    assert (decision.status, decision.reason) == (S.TERMINATING, R.JOB_FAILED)


LATER = NOW + HOUR
TABLE: list[tuple[str, RunSnapshot, S, tuple[object, ...], datetime | None]] = [
    ("its time has not come", run(status=S.PENDING, next_triggered_at=LATER), S.PENDING, (), LATER),
    (
        "its time has come",
        run(status=S.PENDING, next_triggered_at=NOW),
        S.SUBMITTED,
        (SubmitReplicas((0,)), SetTrigger(None)),
        None,
    ),
    (
        "its time has come again",
        run(ended(JR.DONE_BY_RUNNER), status=S.PENDING, next_triggered_at=NOW - HOUR),
        S.SUBMITTED,
        (SubmitReplicas((0,)), SetTrigger(None)),
        None,
    ),
    *(
        (
            f"ended {reason.value}",
            run(status=S.TERMINATING, termination_reason=reason, next_trigger_after=LATER),
            S.PENDING,
            (SetTrigger(LATER), CountAttempt(0)),
            LATER,
        )
        for reason in R
        if reason not in (R.STOPPED_BY_USER, R.ABORTED_BY_USER)
    ),
    *(
        (
            f"ended {reason.value}",
            run(status=S.TERMINATING, termination_reason=reason, next_trigger_after=LATER),
            reason.run_status,
            (),
            None,
        )
        for reason in (R.STOPPED_BY_USER, R.ABORTED_BY_USER)
    ),
    (
        "stopped while it waits",
        run(status=S.PENDING, next_triggered_at=LATER, stop_requested=R.STOPPED_BY_USER),
        S.TERMINATING,
        (),
        None,
    ),
    (
        "a time that comes while it runs is left out",
        run(
            SubmissionFacts(UUID(int=9), 0, 0, 0, JobStatus.RUNNING, NOW, NOW),
            next_trigger_after=NOW + timedelta(seconds=1),
        ),
        S.RUNNING,
        (),
        None,
    ),
]


@pytest.mark.parametrize(
    ("known", "status", "writes", "look_again_at"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_schedule(
    known: RunSnapshot, status: S, writes: tuple[object, ...], look_again_at: datetime | None
) -> None:
    decision = rules.decide(known, NOW)
    assert (decision.status, decision.writes, decision.look_again_at) == (status, writes, look_again_at)

"""What happens next to a job submission, as a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from dstack.agent import protocol
from dstack.agent.protocol import TaskState
from dstack.core.instances import InstanceStatus
from dstack.core.jobs import JobStatus as S
from dstack.core.jobs import JobTerminationReason as R
from dstack.server.orchestrator.jobs import rules
from dstack.server.orchestrator.jobs.rules import (
    Detach,
    InstanceFacts,
    JobSnapshot,
    PutTask,
    Register,
    RemoveTask,
    StartDraining,
    StopTask,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOST = InstanceFacts(UUID(int=9), "local-0", InstanceStatus.BUSY, has_agent=True)
JOB = JobSnapshot(UUID(int=1), UUID(int=2), UUID(int=3), "t-0-0", S.SUBMITTED, NOW)


def task(status: str, reason: str | None = None) -> TaskState:
    return TaskState(id=str(JOB.id), seq=1, status=status, reason=reason)


TABLE: list[tuple[str, dict[str, Any], S, tuple[type, ...]]] = [
    ("waits for its turn", {}, S.SUBMITTED, ()),
    ("no capacity and no retry", {"capacity_error": "none"}, S.TERMINATING, ()),
    ("placed", {"instance": HOST}, S.PROVISIONING, (PutTask,)),
    ("placed on what is coming", {"instance": replace(HOST, status=InstanceStatus.PENDING)}, S.SUBMITTED, ()),
    ("agent not there yet", {"instance": replace(HOST, has_agent=False)}, S.PROVISIONING, ()),
    ("other nodes are behind", {"instance": HOST, "may_start": False}, S.PROVISIONING, ()),
    ("put", {"instance": HOST, "status": S.PROVISIONING, "put_at": NOW}, S.PROVISIONING, ()),
    (
        "put without an effect",
        {"instance": HOST, "status": S.PROVISIONING, "put_at": NOW - rules.LOOK_AGAIN},
        S.PROVISIONING,
        (PutTask,),
    ),
    ("preparing", {"instance": HOST, "status": S.PROVISIONING, "task": task("preparing")}, S.PROVISIONING, ()),
    ("pulling", {"instance": HOST, "status": S.PROVISIONING, "task": task("pulling")}, S.PULLING, ()),
    ("running", {"instance": HOST, "status": S.PROVISIONING, "task": task("running")}, S.RUNNING, ()),
    ("an older state", {"instance": HOST, "status": S.RUNNING, "task": task("pulling")}, S.RUNNING, ()),
    (
        "asked to end",
        {"status": S.RUNNING, "instance": HOST, "terminate_requested": R.TERMINATED_BY_USER},
        S.TERMINATING,
        (),
    ),
    (
        "out of sight",
        {"status": S.RUNNING, "instance": HOST, "task": task("running"), "unreachable_since": NOW},
        S.RUNNING,
        (),
    ),
    (
        "not yet stopped",
        {"status": S.TERMINATING, "instance": HOST, "task": task("running")},
        S.TERMINATING,
        (StopTask,),
    ),
    (
        "being stopped",
        {"status": S.TERMINATING, "instance": HOST, "task": task("running"), "stop_sent_at": NOW},
        S.TERMINATING,
        (),
    ),
    ("log not stored", {"status": S.TERMINATING, "instance": HOST, "task": task("ended")}, S.TERMINATING, ()),
    (
        "log stored",
        {"status": S.TERMINATING, "instance": HOST, "task": task("ended"), "logs_stored": True},
        S.TERMINATING,
        (RemoveTask,),
    ),
    (
        "removed",
        {"status": S.TERMINATING, "instance": HOST, "task_removed": True, "termination_reason": R.DONE_BY_RUNNER},
        S.DONE,
        (),
    ),
    ("never placed", {"status": S.TERMINATING, "termination_reason": R.TERMINATED_BY_USER}, S.TERMINATED, ()),
    *((f"terminal {s.value}", {"status": s}, s, ()) for s in S if s.is_finished()),
]


@pytest.mark.parametrize(("known", "status", "effects"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_happens_next(known: dict[str, Any], status: S, effects: tuple[type, ...]) -> None:
    decision = rules.decide(replace(JOB, **known), NOW)
    assert decision.status is status
    assert tuple(type(effect) for effect in decision.effects) == effects


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (protocol.DONE, R.DONE_BY_RUNNER),
        (protocol.EXITED_WITH_ERROR, R.CONTAINER_EXITED_WITH_ERROR),
        (protocol.MAX_DURATION_EXCEEDED, R.MAX_DURATION_EXCEEDED),
        ("something newer", R.EXECUTOR_ERROR),
    ],
)
def test_how_a_task_ended_is_why_its_job_ends(reason: str, expected: R) -> None:
    job = replace(JOB, status=S.RUNNING, instance=HOST, task=task(protocol.ENDED, reason))
    assert rules.decide(job, NOW).reason is expected


def test_b11_no_capacity_is_waited_for_within_the_retry_window() -> None:
    waiting = replace(JOB, capacity_error="none", waits_for_capacity_until=NOW + timedelta(hours=1))
    assert rules.decide(waiting, NOW).status is S.SUBMITTED
    after = rules.decide(waiting, NOW + timedelta(hours=1))
    assert (after.status, after.reason) == (S.TERMINATING, R.FAILED_TO_START_DUE_TO_NO_CAPACITY)


def test_b12_a_job_out_of_sight_is_given_up_only_after_the_grace() -> None:
    lost = replace(JOB, status=S.RUNNING, instance=HOST, task=task("running"), unreachable_since=NOW)
    assert rules.decide(lost, NOW).look_again_at == NOW + rules.UNREACHABLE_GRACE
    after = rules.decide(lost, NOW + rules.UNREACHABLE_GRACE)
    assert (after.status, after.reason) == (S.TERMINATING, R.INSTANCE_UNREACHABLE)


def test_b14_a_full_disk_keeps_the_job_until_its_log_is_stored() -> None:
    job = replace(
        JOB, status=S.TERMINATING, instance=HOST, task=task("ended"), logs_error="No space left on device"
    )
    decision = rules.decide(job, NOW + timedelta(days=1))
    assert (decision.status, decision.message) == (S.TERMINATING, "No space left on device")


def test_an_instance_that_never_came_lets_its_job_wait_for_another_one() -> None:
    gone = replace(HOST, status=InstanceStatus.TERMINATED, termination_message="No capacity: sold out")
    decision = rules.decide(replace(JOB, instance=gone), NOW)
    assert decision.status is S.SUBMITTED
    assert decision.writes == (Detach("No capacity: sold out"),)
    assert JOB.placement_key in decision.wake


def test_an_aborted_job_is_killed_at_once() -> None:
    job = replace(
        JOB, status=S.TERMINATING, instance=HOST, task=task("running"), termination_reason=R.ABORTED_BY_USER
    )
    assert rules.decide(job, NOW).effects == (StopTask("aborted_by_user", grace_seconds=0),)


REPLICA = replace(
    JOB, status=S.RUNNING, instance=HOST, task=task("running"), put_at=NOW, is_replica=True, registered=True
)
SCALED_DOWN = replace(REPLICA, terminate_requested=R.SCALED_DOWN)
DRAINING = replace(SCALED_DOWN, registered=False, drain_started_at=NOW)
DRAIN_TABLE: list[tuple[str, JobSnapshot, timedelta, S, tuple[object, ...]]] = [
    ("takes traffic once it runs", replace(REPLICA, registered=False), timedelta(), S.RUNNING, (Register(),)),
    ("not before it is ready", replace(REPLICA, registered=False, is_ready=False), timedelta(), S.RUNNING, ()),
    ("one that fails its probes later stays", replace(REPLICA, is_ready=False), timedelta(), S.RUNNING, ()),
    ("another one routes to it", replace(REPLICA, is_replica=False, registered=False), timedelta(), S.RUNNING, ()),
    ("scaled down", SCALED_DOWN, timedelta(), S.RUNNING, (StartDraining(),)),
    ("the servers have yet to hear", DRAINING, timedelta(seconds=1), S.RUNNING, ()),
    ("it answers what it was asked", replace(DRAINING, in_flight=1), timedelta(minutes=4), S.RUNNING, ()),
    ("for so long", replace(DRAINING, in_flight=1), rules.DRAIN_AT_MOST, S.TERMINATING, ()),
    ("it has answered", DRAINING, rules.DRAIN_AT_LEAST, S.TERMINATING, ()),
    ("never took traffic", replace(SCALED_DOWN, registered=False), timedelta(), S.TERMINATING, ()),
    ("the run is stopped meanwhile", replace(DRAINING, is_run_ending=True), timedelta(), S.TERMINATING, ()),
    (
        "asked to end for another reason",
        replace(REPLICA, terminate_requested=R.TERMINATED_BY_USER),
        timedelta(),
        S.TERMINATING,
        (),
    ),
]


@pytest.mark.parametrize(
    ("known", "later", "status", "writes"), [row[1:] for row in DRAIN_TABLE], ids=[row[0] for row in DRAIN_TABLE]
)
def test_replicas_take_traffic_and_are_drained(
    known: JobSnapshot, later: timedelta, status: S, writes: tuple[object, ...]
) -> None:
    decision = rules.decide(known, NOW + later)
    assert (decision.status, decision.writes) == (status, writes)
    is_draining = known.terminate_requested is not None and status is S.RUNNING
    assert not is_draining or decision.look_again_at is not None

"""Groups of replicas and rolling deployment, as tables (reference: lifecycle, section 15; better B8)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstack.core.configurations.profiles import Retry, RetryEvent
from dstack.core.jobs import JobStatus as J
from dstack.core.jobs import JobTerminationReason as JR
from dstack.core.runs import RunStatus as S
from dstack.core.runs import RunTerminationReason as R
from dstack.server.orchestrator.runs import rules
from dstack.server.orchestrator.runs.facts import (
    AddReplica,
    EndRollout,
    GroupFacts,
    RollBack,
    RunSnapshot,
    SetTrigger,
    StartDeployment,
    SubmissionFacts,
    SubmitReplicas,
    TerminateJobs,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
NO_CAPACITY = JR.FAILED_TO_START_DUE_TO_NO_CAPACITY


def job(num: int, status: J = J.RUNNING, deployment: int = 1, **more: Any) -> SubmissionFacts:
    values: dict[str, Any] = {"registered": status is J.RUNNING, "deployment_num": deployment, **more}
    if status.is_finished():
        values["finished_at"] = NOW
    return SubmissionFacts(UUID(int=num + 1), num, 0, 0, status, NOW, NOW, **values)


def old(num: int, status: J = J.RUNNING, **more: Any) -> SubmissionFacts:
    return job(num, status, 0, **more)


def run(*jobs: SubmissionFacts, target: int = 1, is_rolling: bool = True, **more: Any) -> RunSnapshot:
    groups = more.pop("groups", (GroupFacts("0", target, target, target),))
    values: dict[str, Any] = {"groups": groups, "deployment_num": 1, "is_rolling": is_rolling, **more}
    return RunSnapshot(UUID(int=1), UUID(int=2), "r", values.pop("status", S.RUNNING), NOW, jobs, **values)


def ended(*nums: int) -> TerminateJobs:
    return TerminateJobs(tuple(UUID(int=num + 1) for num in nums), JR.SCALED_DOWN)


GONE = job(9, J.TERMINATED, 0, reason=JR.SCALED_DOWN)
STARTING = job(1, J.PULLING)
NOT_READY = job(1, registered=False)
TABLE: list[tuple[str, RunSnapshot, tuple[object, ...]]] = [
    ("one more is started beside the old one", run(old(0)), (AddReplica(1, "0"),)),
    ("the old one stays while the new one starts", run(old(0), STARTING), ()),
    ("and while it is not ready", run(old(0), NOT_READY), ()),
    ("the new one is ready", run(old(0), job(1)), (ended(0),)),
    ("the old one is on its way out", run(old(0, terminate_requested=True), job(1)), (EndRollout(),)),
    ("it is over", run(old(0, J.TERMINATED, reason=JR.SCALED_DOWN), job(1)), (EndRollout(),)),
    ("nothing to do", run(job(1), is_rolling=False), ()),
    ("one of two at a time", run(old(0), old(1), target=2), (AddReplica(2, "0"),)),
    ("never two more than the target", run(old(0), old(1), job(2, J.SUBMITTED), target=2), ()),
    ("an old one goes for a new one", run(old(0), old(1), job(2), target=2), (ended(1),)),
    (
        "the next waits until it has gone",
        run(old(0), old(1, terminate_requested=True), job(2), target=2),
        (),
    ),
    (
        "then it is started",
        run(old(0), old(1, J.TERMINATED, reason=JR.SCALED_DOWN), job(2), target=2),
        (AddReplica(1, "0"),),
    ),
    ("old ones without traffic go at once", run(old(0, J.PULLING)), (AddReplica(1, "0"), ended(0))),
    ("one that failed is not missed", run(old(0, J.FAILED, reason=JR.EXECUTOR_ERROR), STARTING), (EndRollout(),)),
    ("more are wanted as well", run(old(0), target=3), tuple(AddReplica(num, "0") for num in (1, 2, 3))),
    ("fewer are wanted as well", run(old(0), old(1), old(2), target=1), (ended(2, 1),)),
    ("scaled to zero during a rollout", run(old(0), job(1), target=0), (ended(1, 0),)),
    ("a third deployment", run(job(0, deployment=1), job(1, J.PULLING, 2), deployment_num=3),
     (ended(1),)),
]  # fmt: skip


@pytest.mark.parametrize(("known", "writes"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_b8_what_happens_next_in_a_rollout(known: RunSnapshot, writes: tuple[object, ...]) -> None:
    decision = rules.decide(known, NOW)
    assert decision.writes == writes
    assert decision.status in (S.RUNNING, S.PROVISIONING)


FAILED = [
    (J.FAILED, JR.CONTAINER_EXITED_WITH_ERROR, None),
    (J.FAILED, NO_CAPACITY, None),
    (J.TERMINATING, JR.CONTAINER_EXITED_WITH_ERROR, None),
    (J.DONE, JR.DONE_BY_RUNNER, None),
    (J.FAILED, NO_CAPACITY, Retry(on_events=[RetryEvent.ERROR], duration=60)),
]


@pytest.mark.parametrize(("status", "reason", "retry"), FAILED)
def test_b8_a_rollout_that_fails_goes_back(status: J, reason: JR, retry: Retry | None) -> None:
    broken = job(1, status, reason=reason, retry=retry, registered=False, message="exit status 3")
    decision = rules.decide(run(old(0), broken), NOW)
    assert (decision.status, decision.again) == (S.RUNNING, True)
    [write] = decision.writes
    assert isinstance(write, RollBack)
    assert "replica 1 ended (exit status 3)" in write.message


def test_without_a_version_that_works_the_run_fails() -> None:
    broken = job(1, J.FAILED, reason=JR.CONTAINER_EXITED_WITH_ERROR)
    for before in (old(0, J.PULLING), old(0, terminate_requested=True)):
        decision = rules.decide(run(before, broken), NOW)
        assert (decision.status, decision.reason) == (S.TERMINATING, R.JOB_FAILED)
    decision = rules.decide(run(job(0), broken, target=2, is_rolling=False), NOW)
    assert decision.status is S.TERMINATING


def test_after_going_back_what_failed_is_not_missed_and_its_others_end() -> None:
    """The replica that works has taken the number of the new deployment 2; those of deployment 1 have not."""
    jobs = (job(0, deployment=2), job(1, J.FAILED, 1, reason=NO_CAPACITY), job(2, J.PULLING, 1))
    decision = rules.decide(run(*jobs, is_rolling=False, deployment_num=2), NOW)
    assert (decision.status, decision.writes) == (S.RUNNING, (ended(2),))


def test_a_retried_replica_of_the_version_that_works_comes_back_as_it_was() -> None:
    retry = Retry(on_events=list(RetryEvent), duration=3600)
    lost = old(0, J.FAILED, reason=JR.INSTANCE_UNREACHABLE, retry=retry, last_provisioned_at=NOW)
    decision = rules.decide(run(lost, STARTING), NOW)
    assert SubmitReplicas((0,)) in decision.writes


def groups(**targets: int) -> tuple[GroupFacts, ...]:
    return tuple(GroupFacts(name, target, 0, 9) for name, target in targets.items())


def test_each_group_is_brought_to_its_target() -> None:
    jobs = (job(0, group="a"), job(1, group="b"), job(2, group="b"))
    decision = rules.decide(run(*jobs, groups=groups(a=2, b=1), is_rolling=False), NOW)
    assert decision.writes == (AddReplica(3, "a"), ended(2))


def test_a_group_that_is_no_more_ends_once_the_others_serve() -> None:
    gone = old(0, group="gone")
    starting = run(gone, job(1, J.PULLING, group="a"), groups=groups(a=1))
    assert rules.decide(starting, NOW).writes == ()
    assert rules.decide(run(gone, job(1, group="a"), groups=groups(a=1)), NOW).writes == (ended(0),)


def test_a_service_is_woken_beside_the_replica_that_is_still_ending() -> None:
    ending = job(0, J.TERMINATING, reason=JR.SCALED_DOWN, terminate_requested=True)
    decision = rules.decide(run(ending, status=S.PENDING, is_rolling=False), NOW)
    assert (decision.status, decision.writes) == (S.SUBMITTED, (AddReplica(1, "0"),))


def test_a_service_on_a_schedule_begins_anew_each_time() -> None:
    """Whatever its replicas came to the last time, and however many there were."""
    before = (job(0, J.TERMINATED, reason=JR.MAX_DURATION_EXCEEDED), job(3, J.FAILED, reason=JR.EXECUTOR_ERROR))
    due = run(*before, status=S.PENDING, is_rolling=False, target=2, next_triggered_at=NOW)
    decision = rules.decide(due, NOW)
    assert decision.status is S.SUBMITTED
    assert decision.writes == (StartDeployment(), AddReplica(0, "0"), AddReplica(1, "0"), SetTrigger(None))
    started = (job(0, J.SUBMITTED, 2), job(1, J.SUBMITTED, 2), before[1])
    assert rules.decide(run(*started, is_rolling=False, target=2, deployment_num=2), NOW).writes == ()


def test_a_stop_ends_a_rollout() -> None:
    jobs = (old(0, terminate_requested=True), job(1))
    decision = rules.decide(run(*jobs, stop_requested=R.STOPPED_BY_USER), NOW)
    assert decision.status is S.TERMINATING
    assert decision.writes == (TerminateJobs((UUID(int=2),), JR.TERMINATED_BY_USER),)


steps = st.lists(
    st.tuples(st.sampled_from(["pass", "start", "ready", "end", "update", "fail"]), st.integers(0, 9)), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), steps)
def test_b8_replicas_that_serve_never_become_fewer_than_wanted(target: int, story: list[tuple[str, int]]) -> None:
    """Whatever the order in which replicas start, become ready and fail, and updates come."""
    world = _World(target)
    for action, number in story:
        world.act(action, number)
        assert world.serving() >= target, "old replicas stay until the new ones are ready"
        assert world.living() <= target + 1, "one more at a time"
    for _ in range(30):
        for action in ("pass", "start", "ready", "end"):
            for number in range(10):
                world.act(action, number)
    known = world.run
    assert not known.is_rolling
    assert all(one.deployment_num == known.deployment_num for one in world.alive())
    assert len(world.alive()) == target


class _World:
    """A service in memory, of which every replica of the first deployment works."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.next_id = 1000
        self.run = run(*(job(num, deployment=1) for num in range(target)), target=target, is_rolling=False)

    def alive(self) -> list[SubmissionFacts]:
        return [one for one in self.run.jobs if not one.status.is_finished()]

    def living(self) -> int:
        return len(self.alive())

    def serving(self) -> int:
        return len([one for one in self.alive() if one.registered and not one.is_ending])

    def act(self, action: str, number: int) -> None:
        if action == "pass":
            self._pass()
        elif action == "update":
            self.run = replace(self.run, deployment_num=self.run.deployment_num + 1, is_rolling=True)
        elif alive := self.alive():
            one = alive[number % len(alive)]
            self._change(one, action)

    def _change(self, one: SubmissionFacts, action: str) -> None:
        if action == "start" and one.status is J.SUBMITTED:
            self._put(replace(one, status=J.RUNNING))
        elif action == "ready" and one.status is J.RUNNING and not one.terminate_requested:
            self._put(replace(one, registered=True))
        elif action == "end" and one.terminate_requested:
            self._put(replace(one, status=J.TERMINATED, reason=JR.SCALED_DOWN, finished_at=NOW, registered=False))
        elif action == "fail" and not one.registered and not one.terminate_requested:
            self._put(replace(one, status=J.FAILED, reason=JR.EXECUTOR_ERROR, finished_at=NOW))

    def _put(self, one: SubmissionFacts) -> None:
        self.run = replace(self.run, jobs=tuple(one if old.id == one.id else old for old in self.run.jobs))

    def _pass(self) -> None:
        decision = rules.decide(self.run, NOW)
        assert decision.status in (S.RUNNING, S.PROVISIONING), decision
        for write in decision.writes:
            if isinstance(write, AddReplica):
                kept = [one for one in self.run.jobs if one.replica_num != write.replica_num]
                assert all(one.status.is_finished() for one in self.run.jobs if one not in kept)
                self.next_id += 1
                new = job(write.replica_num, J.SUBMITTED, self.run.deployment_num)
                self.run = replace(self.run, jobs=(*kept, replace(new, id=UUID(int=self.next_id))))
            elif isinstance(write, TerminateJobs):
                for one in self.run.jobs:
                    if one.id in write.ids:
                        self._put(replace(one, terminate_requested=True))
            elif isinstance(write, EndRollout):
                self.run = replace(self.run, is_rolling=False)
            else:
                assert isinstance(write, RollBack)
                self._roll_back()

    def _roll_back(self) -> None:
        """The replicas that serve and are outdated take the number of the next deployment."""
        number = self.run.deployment_num + 1
        jobs = tuple(
            replace(one, deployment_num=number)
            if one.registered and one.deployment_num != self.run.deployment_num
            else one
            for one in self.run.jobs
        )
        self.run = replace(self.run, jobs=jobs, deployment_num=number, is_rolling=False)

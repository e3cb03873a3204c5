"""What holds whatever happens: never stuck, terminal stays terminal, never two instances, nothing left over.

The assertions about single passes stand in `imagined`, which applies them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.orchestrator.imagined import Imagined

from dstack.agent import protocol
from dstack.core.configurations.profiles import Retry, RetryEvent
from dstack.core.runs import RunTerminationReason

RETRY = Retry(on_events=list(RetryEvent), duration=3600)
ENDINGS = (protocol.DONE, protocol.EXITED_WITH_ERROR, protocol.MAX_DURATION_EXCEEDED)
which = st.integers(0, 5)
actions = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 2), st.sampled_from([None, RETRY])),
    st.tuples(st.just("stop"), which, st.sampled_from(["stopped_by_user", "aborted_by_user"])),
    st.tuples(st.just("end"), which, st.sampled_from(ENDINGS)),
    st.tuples(st.just("lose"), which, st.none()),
    st.tuples(st.just("find"), which, st.none()),
    st.tuples(st.just("wait"), st.integers(1, 3000), st.none()),
    st.tuples(st.just("settle"), which, st.none()),
    st.tuples(st.just("stock"), st.integers(0, 3), st.none()),
)


def act(world: Imagined, action: tuple[str, int, Any]) -> None:
    name, number, detail = action
    if name == "submit":
        world.submit(number, detail)
    elif name == "stop" and world.runs:
        world.stop(list(world.runs)[number % len(world.runs)], RunTerminationReason(detail))
    elif name == "end" and world.tasks:
        world.end_task(list(world.tasks)[number % len(world.tasks)], detail)
    elif name in ("lose", "find") and world.living():
        world.reach(world.living()[number % len(world.living())].id, name == "find")
    elif name == "wait":
        world.now += timedelta(seconds=number)
    elif name == "settle":
        world.settle()
    elif name == "stock":
        world.stock = number


def play(world: Imagined, story: list[tuple[str, int, Any]]) -> None:
    for action in story:
        act(world, action)
        world.settle()
        assert all(count == 1 for count in world.starts.values()), "a submission runs once"


@settings(max_examples=150, deadline=None)
@given(st.lists(actions, max_size=12))
def test_a_stopped_run_frees_everything(story: list[tuple[str, int, Any]]) -> None:
    world = Imagined()
    play(world, story)
    for run_id in world.runs:
        world.stop(run_id, RunTerminationReason.STOPPED_BY_USER)
    for _ in range(4):  # hosts out of sight are waited for, but not for ever
        world.settle()
        world.now += timedelta(minutes=21)
    world.settle()
    assert all(run.status.is_finished() for run in world.runs.values())
    assert all(job.status.is_finished() for job in world.jobs.values())
    assert all(one.busy_blocks == 0 for one in world.living())
    assert not world.existing, "idle instances go after their time"
    assert not world.tasks


@settings(max_examples=150, deadline=None)
@given(st.lists(actions, max_size=12))
def test_nothing_is_ever_stuck(story: list[tuple[str, int, Any]]) -> None:
    """Every run ends once its tasks end, capacity is there, and its retries are over."""
    world = Imagined()
    play(world, story)
    world.stock = 2
    for _ in range(40):
        for one in world.living():
            world.reach(one.id, True)
        for job_id in list(world.tasks):
            world.end_task(job_id, protocol.DONE)
        world.now += timedelta(minutes=11)
        world.settle()
    assert all(run.status.is_finished() for run in world.runs.values())

"""How many replicas a service is to have by its requests, as a table (reference: lifecycle, section 15)."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from dstack.core.configurations.scaling import ScalingSpec
from dstack.core.jobs import JobStatus as J
from dstack.core.jobs import JobTerminationReason as JR
from dstack.core.runs import RunStatus as S
from dstack.server.orchestrator.runs import rules
from dstack.server.orchestrator.runs.autoscaling import scale
from dstack.server.orchestrator.runs.facts import (
    AddReplica,
    GroupFacts,
    Load,
    RunSnapshot,
    SetTargets,
    SubmissionFacts,
    TerminateJobs,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
RPS = ScalingSpec(metric="rps", target=10)
FAST = ScalingSpec(metric="rps", target=10, window=30)
AT_WORK = ScalingSpec(metric="in_flight", target=4)
IN_TIME = ScalingSpec(metric="queue_time", target=2)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def replica(num: int, submitted: float, ended: float | None = None) -> SubmissionFacts:
    """Started, and perhaps ended, so many seconds ago."""
    status, reason = (J.RUNNING, None) if ended is None else (J.TERMINATED, JR.SCALED_DOWN)
    return SubmissionFacts(
        UUID(int=num + 1), num, 0, 0, status, ago(submitted), NOW, reason,
        registered=ended is None, finished_at=None if ended is None else ago(ended),
    )  # fmt: skip


def load(in_flight: int = 0, since: float = 3600, **requests: int) -> Load:
    return Load(ago(since), {30: 0, 60: 0, 300: 0} | {int(k[1:]): v for k, v in requests.items()}, in_flight)


def at_work(mean: float) -> Load:
    """So many requests at a time, on average; the minute before last does not matter."""
    return replace(load(in_flight=math.ceil(mean)), mean_in_flight={30: 99, 60: mean, 300: 99})


def waits(seconds: float | None) -> Load:
    """So long until answers begin, on average."""
    known = {} if seconds is None else {60: seconds}
    return replace(load(in_flight=1), waits={30: 99, 300: 99, **known})


def run(target: int, seen: Load | None, *jobs: SubmissionFacts, low: int = 0, **more: Any) -> RunSnapshot:
    scaling = more.pop("scaling", RPS)
    group = GroupFacts("0", target, low, 5, scaling)
    status = more.pop("status", S.RUNNING)
    return RunSnapshot(UUID(int=1), UUID(int=2), "r", status, ago(7200), jobs, groups=(group,), load=seen, **more)


LONG_AGO = (replica(0, 3600),)
TABLE: list[tuple[str, RunSnapshot, int, float | None]] = [
    ("nothing is known yet", run(1, None, *LONG_AGO), 1, None),
    ("as much as one can do", run(1, load(w60=600), *LONG_AGO), 1, None),
    ("a little more", run(1, load(w60=601), *LONG_AGO), 2, None),
    ("much more", run(1, load(w60=100_000), *LONG_AGO), 5, None),
    ("the window that is asked for", run(1, load(w30=900, w60=900), *LONG_AGO, scaling=FAST), 3, None),
    ("too soon after a start", run(1, load(w60=1200), replica(0, 299)), 1, 1),
    ("late enough", run(1, load(w60=1200), replica(0, 300)), 2, None),
    ("less", run(3, load(w60=600), replica(0, 600)), 1, None),
    ("less, but too soon", run(3, load(w60=600), replica(0, 599)), 3, 1),
    ("too soon after an end", run(2, load(), replica(0, 3600), replica(1, 3600, 10)), 2, 590),
    ("nobody asks any more", run(1, load(), *LONG_AGO), 0, None),
    ("a request is still on its way", run(1, load(in_flight=1), *LONG_AGO), 1, None),
    ("never below the range", run(2, load(), *LONG_AGO, low=2), 2, None),
    ("the servers have counted for a moment only", run(2, load(since=20), *LONG_AGO), 2, 40),
    ("from zero at once", run(0, load(w60=1), replica(0, 3600, 1)), 1, None),
    ("from zero for a held request", run(0, load(in_flight=1), replica(0, 3600, 1)), 1, None),
    ("from zero to what is needed", run(0, load(w60=1801), replica(0, 3600, 1)), 4, None),
    ("b10 as much at a time as one can do", run(1, at_work(4.0), *LONG_AGO, scaling=AT_WORK), 1, None),
    ("b10 more at a time", run(1, at_work(4.1), *LONG_AGO, scaling=AT_WORK), 2, None),
    ("b10 more at a time, but too soon", run(1, at_work(9), replica(0, 290), scaling=AT_WORK), 1, 10),
    ("b10 less at a time", run(4, at_work(4.1), *LONG_AGO, scaling=AT_WORK), 2, None),
    ("b10 nothing is at work", run(1, at_work(0), *LONG_AGO, scaling=AT_WORK), 0, None),
    ("b10 one that takes longer than the window", run(1, at_work(0.5), *LONG_AGO, scaling=AT_WORK), 1, None),
    ("b10 answers begin in time", run(2, waits(2.0), *LONG_AGO, scaling=IN_TIME), 2, None),
    ("b10 answers begin too late", run(2, waits(3.0), *LONG_AGO, scaling=IN_TIME), 3, None),
    ("b10 answers begin far too late", run(2, waits(60.0), *LONG_AGO, scaling=IN_TIME), 5, None),
    ("b10 answers begin early", run(4, waits(0.4), *LONG_AGO, scaling=IN_TIME), 1, None),
    ("b10 nobody has been answered, somebody waits", run(2, waits(None), *LONG_AGO, scaling=IN_TIME), 2, None),
    ("b10 nobody asks", run(2, load(), *LONG_AGO, scaling=IN_TIME), 0, None),
    ("no rule", run(2, load(), *LONG_AGO, scaling=None), 2, None),
]  # fmt: skip


@pytest.mark.parametrize(("known", "target", "later"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_b3_how_many_and_when(known: RunSnapshot, target: int, later: float | None) -> None:
    look_again_at = None if later is None else NOW + timedelta(seconds=later)
    assert scale(known, NOW) == ((target,), look_again_at)


def test_b3_replicas_come_and_go_with_the_target() -> None:
    up = rules.decide(run(1, load(w60=1200), *LONG_AGO), NOW)
    assert up.writes == (SetTargets((("0", 2),)), AddReplica(1, "0"))
    down = rules.decide(run(2, load(w60=1), replica(0, 3600), replica(1, 3600)), NOW)
    assert down.writes == (SetTargets((("0", 1),)), TerminateJobs((UUID(int=2),), JR.SCALED_DOWN))
    later = rules.decide(run(1, load(w60=1200), replica(0, 200)), NOW)
    assert (later.writes, later.look_again_at) == ((), NOW + timedelta(seconds=100))


def test_b7_a_service_that_sleeps_is_woken() -> None:
    asleep = run(0, load(), replica(0, 3600, 1000), status=S.PENDING)
    assert rules.decide(asleep, NOW).status is S.PENDING
    woken = rules.decide(run(0, load(in_flight=1), replica(0, 3600, 1000), status=S.PENDING), NOW)
    assert woken.status is S.SUBMITTED
    assert woken.writes == (SetTargets((("0", 1),)), AddReplica(0, "0"))

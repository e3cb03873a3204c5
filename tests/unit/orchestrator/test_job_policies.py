"""What ends a job that could run on, as a table (reference: lifecycle, section 4)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from dstack.core.configurations.profiles import UtilizationPolicy
from dstack.core.jobs import JobTerminationReason as R
from dstack.server.orchestrator.jobs.policies import GpuSample, Policies, judge

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
HALF = UtilizationPolicy(min_gpu_utilization=50, time_window=600)


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


FIRST, LIMIT = minutes(9.5), minutes(5)


def samples(*percents: tuple[int, ...], first: timedelta = FIRST) -> tuple[GpuSample, ...]:
    """Evenly spread from the first until now."""
    step = first / max(len(percents) - 1, 1)
    return tuple(GpuSample(NOW - first + step * number, gpus) for number, gpus in enumerate(percents))


def alone_since(ago: timedelta, limit: timedelta | None = LIMIT) -> Policies:
    return Policies(is_watched=True, inactivity_duration=limit, last_active_at=NOW - ago)


def used(*percents: tuple[int, ...], first: timedelta = FIRST) -> Policies:
    return Policies(utilization=HALF, usage=samples(*percents, first=first))


ENDED, IDLE = R.INACTIVITY_DURATION_EXCEEDED, R.TERMINATED_DUE_TO_UTILIZATION_POLICY
TABLE: list[tuple[str, Policies, R | None, timedelta | None]] = [
    ("nothing asked for", Policies(), None, None),
    ("no limit of inactivity", alone_since(minutes(500), None), None, None),
    ("not running for long enough to know", Policies(inactivity_duration=minutes(5)), None, None),
    ("connected a minute ago", alone_since(minutes(1)), None, minutes(4)),
    ("alone for exactly the limit", alone_since(minutes(5)), ENDED, None),
    ("alone for longer", alone_since(minutes(50)), ENDED, None),
    (
        "a limit shorter than reports take",
        alone_since(timedelta(seconds=9), timedelta(seconds=1)),
        None,
        timedelta(seconds=1),
    ),
    ("no samples yet", used(), None, minutes(1)),
    ("samples for half of the window", used((0,), (0,), (0,), first=minutes(5)), None, minutes(5)),
    (
        "the oldest is too young by a second",
        used((0,), first=minutes(8.9)),
        None,
        None,
    ),
    ("idle all the time", used((0,), (49,), (10,)), IDLE, None),
    ("one of two is idle", used((90, 10), (95, 20), (99, 49)), IDLE, None),
    ("each was busy once", used((90, 10), (0, 50), (0, 0)), None, None),
    ("busy at the border", used((0,), (50,), (0,)), None, None),
    ("not all samples know of the second", used((90, 0), (90,), (90, 0)), None, None),
    ("a job without GPUs", used((), (), ()), None, None),
]


@pytest.mark.parametrize(
    ("known", "reason", "look_after"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_verdict(known: Policies, reason: R | None, look_after: timedelta | None) -> None:
    verdict = judge(known, NOW)
    assert verdict.reason is reason
    assert (verdict.message is None) == (reason is None)
    if look_after is not None:
        assert verdict.look_again_at == NOW + look_after
    if reason is not None:
        assert reason.job_status.value == "terminated"


def test_it_looks_again_when_the_last_busy_moment_leaves_the_window() -> None:
    verdict = judge(used((90,), (90,), (0,)), NOW)
    assert verdict.look_again_at == NOW + minutes(10 - 4.75) + timedelta(seconds=1)


def test_the_sooner_of_two_policies_decides_when_to_look() -> None:
    both = Policies(
        is_watched=True,
        inactivity_duration=minutes(5),
        last_active_at=NOW - minutes(4),
        utilization=HALF,
        usage=samples((90,), (90,)),
    )
    assert judge(both, NOW).look_again_at == NOW + minutes(1)

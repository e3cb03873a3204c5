"""How many replicas each group of a service is to have, by the requests it gets (lifecycle, section 15). Pure."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from typing_extensions import assert_never

from dstack.core.configurations.scaling import DEFAULT_WINDOW, ScalingSpec
from dstack.server.orchestrator.runs.facts import GroupFacts, Load, RunSnapshot


def scale(run: RunSnapshot, now: datetime) -> tuple[tuple[int, ...], datetime | None]:
    """The target of each group, and when a change that is due only later is to be looked at."""
    targets = []
    later: list[datetime] = []
    for group in run.groups:
        target = group.target
        if group.scaling is not None and run.load is not None:
            wanted = _wanted(group, group.scaling, run.load)
            at = _due_at(run, group, wanted, run.load)
            if wanted != target and now >= at:
                target = wanted
            elif wanted != target:
                later.append(at)
        targets.append(target)
    return tuple(targets), min(later, default=None)


def _wanted(group: GroupFacts, scaling: ScalingSpec, load: Load) -> int:
    """What is on its way keeps at least one replica: it is counted as a request only once it is answered."""
    replicas = math.ceil(_measured(group, scaling, load) / scaling.target)
    if load.in_flight:
        replicas = max(replicas, 1)
    return min(max(replicas, group.low), group.high)


def _measured(group: GroupFacts, scaling: ScalingSpec, load: Load) -> float:
    """The metric of all replicas together: as many of them as it holds the target are wanted (better B10)."""
    window = scaling.window or DEFAULT_WINDOW
    match scaling.metric:
        case "rps":
            return load.requests.get(window, 0) / window
        case "in_flight":
            return load.mean_in_flight.get(window, 0.0)
        case "queue_time":  # half the replicas let requests wait twice as long, or longer
            unknown = scaling.target if load.in_flight else 0.0
            return load.waits.get(window, unknown) * max(group.target, 1)
        case _:
            assert_never(scaling.metric)


def _due_at(run: RunSnapshot, group: GroupFacts, wanted: int, load: Load) -> datetime:
    """From zero at once; else a while after the group last changed, and never down on less than a whole window."""
    scaling = group.scaling
    assert scaling is not None
    last = _last_event_at(run, group)
    if wanted > group.target:
        return last + timedelta(seconds=scaling.scale_up_delay) if group.target else run.submitted_at
    counted = load.since + timedelta(seconds=scaling.window or DEFAULT_WINDOW)
    return max(last + timedelta(seconds=scaling.scale_down_delay), counted)


def _last_event_at(run: RunSnapshot, group: GroupFacts) -> datetime:
    """The newest start of a replica that is there, or end of one that is not."""
    mine = [job for job in run.jobs if job.group == group.name]
    times = [job.submitted_at if job.finished_at is None else job.finished_at for job in mine]
    return max(times, default=run.submitted_at)

"""What ends a running job although it could run on: nobody is connected, or its accelerators are idle. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dstack.core.configurations.profiles import UtilizationPolicy
from dstack.core.durations import format_duration
from dstack.core.jobs import JobTerminationReason

R = JobTerminationReason

REPORTING_SLACK = timedelta(seconds=10)
"""Connections are written down every few seconds only: the one that is open may be as old as this on record."""
FIRST_MINUTE = timedelta(minutes=1)
"""How much later than the window's begin its oldest sample may be."""
LOOK_FOR_SAMPLES = timedelta(minutes=1)


@dataclass(frozen=True)
class GpuSample:
    """One measurement: how busy each of the job's accelerators was, in percent."""

    at: datetime
    percents: tuple[int, ...]


@dataclass(frozen=True)
class Policies:
    """What the run asked for, and what is known for it."""

    is_watched: bool = False
    """A dev environment: it is remembered when somebody was connected."""
    inactivity_duration: timedelta | None = None
    last_active_at: datetime | None = None
    utilization: UtilizationPolicy | None = None
    usage: tuple[GpuSample, ...] = ()
    """Those of the policy's window, oldest first."""


@dataclass(frozen=True)
class Verdict:
    """Why the job has to end, or when to look again."""

    reason: JobTerminationReason | None = None
    message: str | None = None
    look_again_at: datetime | None = None


def judge(policies: Policies, now: datetime) -> Verdict:
    """Of a job that runs."""
    verdicts = [_judge_activity(policies, now), _judge_usage(policies, now)]
    for verdict in verdicts:
        if verdict.reason is not None:
            return verdict
    times = [verdict.look_again_at for verdict in verdicts if verdict.look_again_at is not None]
    return Verdict(look_again_at=min(times, default=None))


def _judge_activity(policies: Policies, now: datetime) -> Verdict:
    limit, since = policies.inactivity_duration, policies.last_active_at
    if limit is None or since is None:
        return Verdict()
    due = since + max(limit, REPORTING_SLACK)
    if now < due:
        return Verdict(look_again_at=due)
    shown = format_duration(int(limit.total_seconds()))
    return Verdict(R.INACTIVITY_DURATION_EXCEEDED, f"Nobody was connected for {shown}, the inactivity_duration")


def _judge_usage(policies: Policies, now: datetime) -> Verdict:
    policy = policies.utilization
    if policy is None:
        return Verdict()
    window = timedelta(seconds=policy.time_window)
    inside = [sample for sample in policies.usage if now - window <= sample.at <= now]
    if not inside:
        return Verdict(look_again_at=now + LOOK_FOR_SAMPLES)
    if inside[0].at > now - window + FIRST_MINUTE:
        return Verdict(look_again_at=inside[0].at + window)
    busy = [_last_busy(inside, number, policy) for number in range(len(inside[0].percents))]
    if None in busy:
        shown = format_duration(policy.time_window)
        message = f"GPU {busy.index(None)} was used less than {policy.min_gpu_utilization}% for {shown}"
        return Verdict(R.TERMINATED_DUE_TO_UTILIZATION_POLICY, message)
    times = [at + window for at in busy if at is not None]
    return Verdict(look_again_at=max(min(times, default=now), now) + timedelta(seconds=1))


def _last_busy(samples: Sequence[GpuSample], number: int, policy: UtilizationPolicy) -> datetime | None:
    """When the accelerator was last used enough, or not measured; None: never in all of the samples."""
    busy = [
        sample.at
        for sample in samples
        if number >= len(sample.percents) or sample.percents[number] >= policy.min_gpu_utilization
    ]
    return busy[-1] if busy else None

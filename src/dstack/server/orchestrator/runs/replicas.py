"""Which replicas of a service are started and ended: scaling, and rolling deployment (better B8). Pure.

Each group is brought to its target by itself. Replicas of an earlier deployment stay until enough of the present
one take traffic; one more than the target exists meanwhile. Ending replicas are drained by their jobs' rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.server.orchestrator.decision import Key
from dstack.server.orchestrator.runs.facts import (
    AddReplica,
    EndRollout,
    GroupFacts,
    RunSnapshot,
    SubmissionFacts,
    TerminateJobs,
)

J = JobStatus
_PROGRESS = (J.RUNNING, J.PULLING, J.PROVISIONING, J.SUBMITTED)


@dataclass(frozen=True)
class Plan:
    """What to record, and whom to wake."""

    writes: tuple[object, ...] = ()
    wake: tuple[Key, ...] = ()


@dataclass(frozen=True)
class _GroupPlan:
    added: int
    ended: tuple[SubmissionFacts, ...]
    is_served: bool
    """As many replicas take traffic as are to be there."""


def not_asked(jobs: Iterable[SubmissionFacts]) -> list[SubmissionFacts]:
    """Those that nobody has asked to end yet."""
    return [job for job in jobs if not job.terminate_requested and job.status is not J.TERMINATING]


def is_outdated(run: RunSnapshot, job: SubmissionFacts) -> bool:
    """Of an earlier deployment of a service."""
    return run.is_service and job.deployment_num != run.deployment_num


def is_superseded(run: RunSnapshot, job: SubmissionFacts) -> bool:
    """Outdated and over: nothing is to be done about it any more."""
    return is_outdated(run, job) and job.status.is_finished()


def has_working(run: RunSnapshot) -> bool:
    """Whether a replica of an earlier deployment takes traffic."""
    return any(_takes_traffic(job) and is_outdated(run, job) for job in run.jobs)


def add_all(run: RunSnapshot) -> tuple[AddReplica, ...]:
    """All that is missing, of a service of which nothing is alive."""
    plan_of = {group.name: group.target for group in run.groups}
    numbers = _free_numbers(run)
    return tuple(AddReplica(next(numbers), name) for name, count in plan_of.items() for _ in range(count))


def end_rollout(run: RunSnapshot) -> tuple[EndRollout, ...]:
    """Once there is no replica of an earlier deployment that is not ending."""
    outdated = [job for job in run.unfinished if is_outdated(run, job) and not job.is_ending]
    return (EndRollout(),) if run.is_rolling and not outdated else ()


def plan(run: RunSnapshot, retried: Sequence[int]) -> Plan:
    """`retried`: replicas that are submitted again in the same pass."""
    counted = [job for job in run.jobs if _counts(run, job, retried)]
    plans = {
        group.name: _plan_group(run, group, [job for job in counted if job.group == group.name])
        for group in run.groups
    }
    numbers = _free_numbers(run)
    writes: list[object] = [
        AddReplica(next(numbers), name) for name, one in plans.items() for _ in range(one.added)
    ]
    wake = [run.placement_key] if writes else []
    ended = [job for one in plans.values() for job in one.ended]
    if all(one.is_served for one in plans.values()):
        ended += not_asked(job for job in run.unfinished if job.group not in plans)
    if ended:
        writes.append(TerminateJobs(tuple(job.id for job in ended), JobTerminationReason.SCALED_DOWN))
        wake += [job.key for job in ended]
    if not ended:
        writes += end_rollout(run)
    return Plan(tuple(writes), tuple(wake))


def _counts(run: RunSnapshot, job: SubmissionFacts, retried: Sequence[int]) -> bool:
    """A replica that is over counts while it is to be retried, or ended well and is not replaced."""
    if not job.status.is_finished():
        return True
    if job.replica_num in retried:
        return True
    return job.reason is not JobTerminationReason.SCALED_DOWN and not is_outdated(run, job)


def _plan_group(run: RunSnapshot, group: GroupFacts, jobs: Sequence[SubmissionFacts]) -> _GroupPlan:
    staying = [job for job in jobs if not job.is_ending]
    new = sorted((job for job in staying if not is_outdated(run, job)), key=_value)
    old = sorted((job for job in staying if is_outdated(run, job)), key=_value)
    serving = [job for job in staying if _takes_traffic(job)]
    ended = new[group.target :]
    missing = max(group.target - len(new), 0)
    if old:
        missing = min(missing, max(group.target + 1 - len(jobs), 0))
        ended += [job for job in old if not _takes_traffic(job)]
        to_spare = max(len([job for job in serving if job not in ended]) - group.target, 0)
        ended += [job for job in reversed(old) if _takes_traffic(job)][:to_spare]
    is_served = len([job for job in serving if job not in ended]) >= group.target
    return _GroupPlan(missing, tuple(not_asked(job for job in ended if not job.status.is_finished())), is_served)


def _takes_traffic(job: SubmissionFacts) -> bool:
    return job.status is J.RUNNING and job.registered and not job.is_ending


def _value(job: SubmissionFacts) -> tuple[bool, int, int]:
    """The order of keeping replicas: those that take traffic first, then by how far they are, then by number."""
    progress = _PROGRESS.index(job.status) if job.status in _PROGRESS else len(_PROGRESS)
    return (not _takes_traffic(job), progress, job.replica_num)


def _free_numbers(run: RunSnapshot) -> Iterator[int]:
    """Of replicas, lowest first: numbers of replicas that were scaled down or superseded are free again."""
    dropped = JobTerminationReason.SCALED_DOWN
    taken = {
        job.replica_num
        for job in run.jobs
        if not job.status.is_finished() or (job.reason is not dropped and not is_superseded(run, job))
    }
    return (number for number in itertools.count() if number not in taken)

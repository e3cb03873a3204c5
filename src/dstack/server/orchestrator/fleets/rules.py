"""What should happen next to a fleet: it is filled, keeps its minimum, and goes when asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from typing_extensions import assert_never

from dstack.core.fleets import FleetStatus
from dstack.core.instances import InstanceStatus, InstanceTerminationReason
from dstack.server.orchestrator.decision import Decision, Key, Kind

S = FleetStatus

CONSOLIDATION_DELAYS = tuple(timedelta(minutes=minutes) for minutes in (1, 2, 5, 10, 30))
MAX_ATTEMPTS = 15
"""Fruitless attempts in a row after which only an update of the fleet makes it try again."""


@dataclass(frozen=True)
class MemberFacts:
    """An instance of the fleet that is not terminated."""

    id: UUID
    instance_num: int
    status: InstanceStatus
    terminate_requested: bool = False

    @property
    def key(self) -> Key:
        return Key(Kind.INSTANCE, self.id)


@dataclass(frozen=True)
class FleetSnapshot:
    """All that is known of a fleet."""

    id: UUID
    project_id: UUID
    name: str
    status: FleetStatus
    instances: tuple[MemberFacts, ...]
    min_nodes: int = 0
    target_nodes: int = 0
    is_filled: bool = False
    """It once had the instances it starts with."""
    delete_requested: bool = False
    consolidation_attempt: int = 0
    last_consolidated_at: datetime | None = None


@dataclass(frozen=True)
class CreateInstances:
    """A write: new pending instances with these numbers."""

    nums: tuple[int, ...]
    is_retry: bool = False


@dataclass(frozen=True)
class TerminateInstances:
    """A write: asks these instances to go."""

    ids: tuple[UUID, ...]
    reason: InstanceTerminationReason


@dataclass(frozen=True)
class ResetAttempts:
    """A write: the fleet has what it must have."""


def decide(fleet: FleetSnapshot, now: datetime) -> Decision[FleetStatus]:
    """The first thing that holds."""
    match fleet.status:
        case S.TERMINATED | S.FAILED:
            return Decision(fleet.status)
        case S.TERMINATING:
            return _decide_terminating(fleet)
        case S.SUBMITTED | S.ACTIVE:
            return _decide_terminating(fleet) if fleet.delete_requested else _decide_active(fleet, now)
        case _:
            assert_never(fleet.status)


def _decide_terminating(fleet: FleetSnapshot) -> Decision[FleetStatus]:
    if not fleet.instances:
        return Decision(S.TERMINATED, wake=(Key(Kind.PLACEMENT, fleet.project_id),))
    asked = [one for one in fleet.instances if not one.terminate_requested]
    ids = tuple(one.id for one in asked)
    writes = (TerminateInstances(ids, InstanceTerminationReason.TERMINATED_BY_USER),) if asked else ()
    return Decision(S.TERMINATING, writes=writes, wake=tuple(one.key for one in asked))


def _decide_active(fleet: FleetSnapshot, now: datetime) -> Decision[FleetStatus]:
    living = [one for one in fleet.instances if one.status is not InstanceStatus.TERMINATING]
    wanted = fleet.min_nodes if fleet.is_filled else fleet.target_nodes
    missing = wanted - len(living)
    if missing <= 0:
        return Decision(S.ACTIVE, writes=(ResetAttempts(),) if fleet.consolidation_attempt else ())
    due = _due_at(fleet)
    if fleet.consolidation_attempt >= MAX_ATTEMPTS:
        return Decision(S.ACTIVE)
    if due is not None and now < due:
        return Decision(S.ACTIVE, look_again_at=due)
    nums = _free_nums(fleet, missing)
    return Decision(S.ACTIVE, writes=(CreateInstances(nums, is_retry=fleet.is_filled),))


def _due_at(fleet: FleetSnapshot) -> datetime | None:
    if fleet.last_consolidated_at is None or fleet.consolidation_attempt == 0:
        return None
    delay = CONSOLIDATION_DELAYS[min(fleet.consolidation_attempt, len(CONSOLIDATION_DELAYS)) - 1]
    return fleet.last_consolidated_at + delay


def _free_nums(fleet: FleetSnapshot, count: int) -> tuple[int, ...]:
    taken = {one.instance_num for one in fleet.instances}
    free = (num for num in range(len(taken) + count) if num not in taken)
    return tuple(next(free) for _ in range(count))

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
R = InstanceTerminationReason

CONSOLIDATION_DELAYS = tuple(timedelta(minutes=minutes) for minutes in (1, 2, 5, 10, 30))
MAX_ATTEMPTS = 15
"""Fruitless attempts in a row after which only an update of the fleet makes it try again."""


_MAY_GO = (InstanceStatus.PROVISIONING, InstanceStatus.IDLE)


@dataclass(frozen=True)
class MemberFacts:
    """An instance of the fleet that is not terminated."""

    id: UUID
    instance_num: int
    status: InstanceStatus
    terminate_requested: bool = False
    is_free: bool = True
    """No job holds any of it."""
    mismatch: str | None = None
    """Why it is not what the fleet asks for any more."""

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
    max_nodes: int | None = None
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
    superfluous = _superfluous(fleet, [one for one in living if not one.terminate_requested])
    if superfluous:
        wake = tuple(Key(Kind.INSTANCE, id) for write in superfluous for id in write.ids)
        return Decision(S.ACTIVE, writes=superfluous, wake=wake)
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


def _superfluous(fleet: FleetSnapshot, living: list[MemberFacts]) -> tuple[TerminateInstances, ...]:
    """Free ones that are not what the fleet asks for any more, and those above its maximum, the newest first."""
    free = [one for one in living if one.is_free and one.status in _MAY_GO]
    unfit = [one for one in free if one.mismatch is not None]
    too_many = 0 if fleet.max_nodes is None else len(living) - len(unfit) - fleet.max_nodes
    others = sorted((one for one in free if one.mismatch is None), key=lambda one: -one.instance_num)
    surplus = others[: max(too_many, 0)]
    found = ((unfit, R.FLEET_SPEC_MISMATCH), (surplus, R.MAX_INSTANCES_LIMIT))
    return tuple(TerminateInstances(tuple(one.id for one in ones), reason) for ones, reason in found if ones)


def _due_at(fleet: FleetSnapshot) -> datetime | None:
    if fleet.last_consolidated_at is None or fleet.consolidation_attempt == 0:
        return None
    delay = CONSOLIDATION_DELAYS[min(fleet.consolidation_attempt, len(CONSOLIDATION_DELAYS)) - 1]
    return fleet.last_consolidated_at + delay


def _free_nums(fleet: FleetSnapshot, count: int) -> tuple[int, ...]:
    taken = {one.instance_num for one in fleet.instances}
    free = (num for num in range(len(taken) + count) if num not in taken)
    return tuple(next(free) for _ in range(count))

"""What should happen next to an instance. Pure.

Its name is on record before anything is made, the offer before the backend is asked: making sure of it is
always safe to repeat. Blocks are taken by `placement` and given back by jobs; here they only say idle or busy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from typing_extensions import assert_never

from dstack.core.instances import InstanceStatus, InstanceTerminationReason
from dstack.server.orchestrator.decision import Decision, Effect, Key, Kind

S = InstanceStatus
R = InstanceTerminationReason

POLL = timedelta(seconds=2)
"""How often a backend is asked whether an instance is on its way or gone."""
UNREACHABLE_GRACE = timedelta(minutes=20)
LOCAL_RESTART = timedelta(seconds=1)
REDEPLOY = timedelta(seconds=30)
"""How often a host of an SSH fleet that does not answer is visited."""
REMOVAL_LIMIT = timedelta(minutes=1)
"""After this a host that cannot be reached is let go of with the agent on it."""
TERMINATION_LIMIT = timedelta(minutes=15)
"""After this a backend that cannot end an instance is no longer asked."""


@dataclass(frozen=True)
class InstanceSnapshot:
    """All that is known of an instance."""

    id: UUID
    project_id: UUID
    name: str
    status: InstanceStatus
    created_at: datetime
    fleet_id: UUID | None = None
    is_local: bool = False
    """The machine of the server: its agent is started again when it is gone; it is never idle for too long."""
    is_ssh: bool = False
    """A host of an SSH fleet: it is given the agent, and stays when it cannot be reached."""
    is_outdated: bool = False
    """Its agent is of another version than the server."""
    last_error: str | None = None
    wake_at: datetime | None = None
    """When it is looked at next, wake-ups aside."""
    has_failed: bool = False
    """The last attempt to do something about it failed; the next one is due at `wake_at`."""
    has_offer: bool = False
    has_address: bool = False
    has_agent: bool = False
    busy_blocks: int = 0
    job_ids: tuple[UUID, ...] = ()
    """Unfinished jobs on it."""
    idle_duration: timedelta | None = None
    """None: never."""
    last_job_processed_at: datetime | None = None
    may_shrink: bool = True
    """The fleet has more active instances than it must keep."""
    terminate_requested: InstanceTerminationReason | None = None
    terminate_message: str | None = None
    termination_deadline: datetime | None = None
    provisioning_deadline: datetime | None = None
    unreachable_since: datetime | None = None
    is_gone: bool = False
    """The backend has confirmed that it no longer exists."""

    @property
    def placement_key(self) -> Key:
        return Key(Kind.PLACEMENT, self.project_id)

    @property
    def dependants(self) -> tuple[Key, ...]:
        """Whom a change of status concerns."""
        jobs = tuple(Key(Kind.JOB, job_id) for job_id in self.job_ids)
        fleet = () if self.fleet_id is None else (Key(Kind.FLEET, self.fleet_id),)
        return (*jobs, *fleet, self.placement_key)


@dataclass(frozen=True)
class ChooseOffer(Effect):
    """Finds the cheapest offer that does; it is put on record before the backend is asked for it."""


@dataclass(frozen=True)
class EnsureInstance(Effect):
    """Creates the instance, or finds the one of its name."""


@dataclass(frozen=True)
class DeployAgent(Effect):
    """Has the agent of this server's version run on the host, and learns what the host has."""


@dataclass(frozen=True)
class RemoveAgent(Effect):
    """Takes the agent off the host."""


@dataclass(frozen=True)
class EnsureTerminated(Effect):
    """Has the backend end the instance."""


def decide(instance: InstanceSnapshot, now: datetime) -> Decision[InstanceStatus]:
    """The first thing that holds."""
    match instance.status:
        case S.TERMINATED:
            return Decision(S.TERMINATED)
        case S.TERMINATING:
            return _decide_terminating(instance, now)
        case S.PENDING | S.PROVISIONING | S.IDLE | S.BUSY:
            if instance.terminate_requested is not None:
                return _terminate(instance, instance.terminate_requested, instance.terminate_message)
        case _:
            assert_never(instance.status)
    if instance.status in (S.PENDING, S.PROVISIONING):
        return _decide_coming(instance, now)
    return _decide_ready(instance, now)


def _terminate(
    instance: InstanceSnapshot, reason: InstanceTerminationReason, message: str | None = None
) -> Decision[InstanceStatus]:
    return Decision(S.TERMINATING, reason=reason, message=message, wake=instance.dependants, again=True)


def _decide_coming(instance: InstanceSnapshot, now: datetime) -> Decision[InstanceStatus]:
    if instance.has_address and instance.has_agent:
        return _ready(instance)
    if instance.provisioning_deadline is not None and now >= instance.provisioning_deadline:
        return _terminate(
            instance, R.PROVISIONING_TIMEOUT, instance.last_error or "Its agent did not answer in time"
        )
    if instance.is_ssh:
        if instance.has_failed and not _is_due(instance, now):
            return Decision(S.PENDING, look_again_at=instance.wake_at)
        return Decision(S.PENDING, effects=(DeployAgent(),), rest_until=instance.provisioning_deadline)
    if not instance.has_offer:
        return Decision(S.PENDING, effects=(ChooseOffer(),), look_again_at=now + POLL, again=True)
    if not instance.has_address:
        is_new = instance.status is S.PENDING
        return Decision(
            S.PROVISIONING,
            effects=(EnsureInstance(),),
            wake=instance.dependants if is_new else (),
            look_again_at=now + POLL,
            again=False,
        )
    return Decision(S.PROVISIONING, look_again_at=instance.provisioning_deadline)


def _is_due(instance: InstanceSnapshot, now: datetime) -> bool:
    """Wake-ups come for many reasons; a host is not visited again for each."""
    return instance.wake_at is None or now >= instance.wake_at


def _ready(instance: InstanceSnapshot) -> Decision[InstanceStatus]:
    status = S.BUSY if instance.busy_blocks else S.IDLE
    return Decision(status, wake=instance.dependants, again=True)


def _decide_ready(instance: InstanceSnapshot, now: datetime) -> Decision[InstanceStatus]:
    status = S.BUSY if instance.busy_blocks else S.IDLE
    changed = status is not instance.status
    wake = instance.dependants if changed and status is S.IDLE else ()
    if instance.unreachable_since is not None:
        return _decide_unreachable(instance, status, instance.unreachable_since, now)
    if instance.is_ssh and instance.is_outdated:
        return replace(_visit(instance, status, now), wake=wake)
    idle_until = _idle_until(instance) if status is S.IDLE else None
    if idle_until is not None and now >= idle_until:
        return _terminate(instance, R.IDLE_TIMEOUT)
    return Decision(status, wake=wake, look_again_at=idle_until)


def _idle_until(instance: InstanceSnapshot) -> datetime | None:
    if instance.idle_duration is None or instance.is_local or instance.is_ssh or not instance.may_shrink:
        return None
    return (instance.last_job_processed_at or instance.created_at) + instance.idle_duration


def _decide_unreachable(
    instance: InstanceSnapshot, status: InstanceStatus, since: datetime, now: datetime
) -> Decision[InstanceStatus]:
    if instance.is_local:
        return Decision(status, effects=(EnsureInstance(),), look_again_at=now + LOCAL_RESTART)
    if instance.is_ssh:
        return _visit(instance, status, now)
    if now >= since + UNREACHABLE_GRACE:
        return _terminate(instance, R.UNREACHABLE)
    return Decision(status, look_again_at=since + UNREACHABLE_GRACE)


def _visit(instance: InstanceSnapshot, status: InstanceStatus, now: datetime) -> Decision[InstanceStatus]:
    if not _is_due(instance, now):
        return Decision(status, look_again_at=instance.wake_at)
    return Decision(status, effects=(DeployAgent(),), rest_until=now + REDEPLOY)


def termination_limit(instance: InstanceSnapshot) -> timedelta:
    """How long its end is tried."""
    return REMOVAL_LIMIT if instance.is_ssh else TERMINATION_LIMIT


def _decide_terminating(instance: InstanceSnapshot, now: datetime) -> Decision[InstanceStatus]:
    deadline = instance.termination_deadline
    is_over = deadline is not None and now >= deadline
    if instance.is_gone or not instance.has_offer or is_over:
        return Decision(S.TERMINATED, wake=instance.dependants)
    if (instance.is_local or instance.is_ssh) and instance.job_ids:  # its tasks end before it is let go of
        return Decision(S.TERMINATING, look_again_at=now + POLL)
    if instance.is_ssh:
        return Decision(S.TERMINATING, effects=(RemoveAgent(),), look_again_at=now + POLL)
    return Decision(S.TERMINATING, effects=(EnsureTerminated(),), look_again_at=now + POLL, again=False)

"""What should happen next to a machine of a gateway. Pure.

It runs once the gateway app has answered there. Its connection is none of its statuses: a machine that cannot be
reached serves on, and is connected to again (`server.gateways`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from typing_extensions import assert_never

from dstack.core.gateways import GatewayReplicaStatus
from dstack.server.orchestrator.decision import Decision, Effect, Key, Kind

REACHED_WITHIN = timedelta(minutes=5)
"""So long a machine is tried for that cannot be reached yet."""
MAX_REMOVALS = 6
"""Failed attempts in a row, some 20 s, after which a machine is let go of with the gateway on it."""

S = GatewayReplicaStatus


@dataclass(frozen=True)
class ReplicaSnapshot:
    """All that is known of a machine of a gateway."""

    id: UUID
    gateway_id: UUID
    gateway_name: str
    project_id: UUID
    replica_num: int
    status: GatewayReplicaStatus
    created_at: datetime
    attempts: int = 0
    last_error: str | None = None
    is_installed: bool = False
    failure: str | None = None
    is_gone: bool = False
    delete_requested: bool = False
    """Of the whole gateway."""

    @property
    def gateway_key(self) -> Key:
        return Key(Kind.GATEWAY, self.gateway_id)


@dataclass(frozen=True)
class Install(Effect):
    """Puts the gateway on the machine and has it run there."""


@dataclass(frozen=True)
class Uninstall(Effect):
    """Takes it off again."""


def decide(replica: ReplicaSnapshot, now: datetime) -> Decision[GatewayReplicaStatus]:
    """The first thing that holds."""
    match replica.status:
        case S.SUBMITTED:
            status = S.TERMINATED if replica.delete_requested else S.PROVISIONING
            return Decision(status, wake=(replica.gateway_key,), again=True)
        case S.PROVISIONING:
            return _decide_provisioning(replica, now)
        case S.RUNNING:
            return _terminating(replica, None) if replica.delete_requested else Decision(S.RUNNING)
        case S.TERMINATING:
            return _decide_removal(replica)
        case S.TERMINATED:
            return Decision(S.TERMINATED)
        case _:
            assert_never(replica.status)


def _decide_provisioning(replica: ReplicaSnapshot, now: datetime) -> Decision[GatewayReplicaStatus]:
    if replica.delete_requested:
        return _terminating(replica, None)
    if replica.failure is not None:
        return _terminating(replica, replica.failure)
    if replica.is_installed:
        return Decision(S.RUNNING, wake=(replica.gateway_key,))
    if replica.attempts and now >= replica.created_at + REACHED_WITHIN:
        return _terminating(replica, replica.last_error)
    return Decision(S.PROVISIONING, effects=(Install(),))


def _terminating(replica: ReplicaSnapshot, why: str | None) -> Decision[GatewayReplicaStatus]:
    return Decision(S.TERMINATING, message=why, wake=(replica.gateway_key,), again=True)


def _decide_removal(replica: ReplicaSnapshot) -> Decision[GatewayReplicaStatus]:
    if replica.is_gone:
        return Decision(S.TERMINATED, wake=(replica.gateway_key,))
    if replica.attempts >= MAX_REMOVALS:
        why = f"The gateway stays on the machine: {replica.last_error}" if replica.is_installed else None
        return Decision(S.TERMINATED, message=why, wake=(replica.gateway_key,))
    return Decision(S.TERMINATING, effects=(Uninstall(),))

"""What should happen next to a gateway. Pure. Its machines are driven for themselves (`gateway_replicas`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from typing_extensions import assert_never

from dstack.core.gateways import GatewayReplicaStatus, GatewayStatus
from dstack.server.orchestrator.decision import Decision, Key, Kind

S = GatewayStatus


@dataclass(frozen=True)
class ReplicaFacts:
    """One machine of it."""

    id: UUID
    status: GatewayReplicaStatus
    message: str | None = None

    @property
    def key(self) -> Key:
        return Key(Kind.GATEWAY_REPLICA, self.id)


@dataclass(frozen=True)
class GatewaySnapshot:
    """All that is known of a gateway."""

    id: UUID
    project_id: UUID
    name: str
    status: GatewayStatus
    replicas: tuple[ReplicaFacts, ...] = ()
    delete_requested: bool = False
    deleted: bool = False


@dataclass(frozen=True)
class MarkDeleted:
    """A write: no machine is left, and nobody sees it any more."""


def decide(gateway: GatewaySnapshot, now: datetime) -> Decision[GatewayStatus]:
    """The first thing that holds."""
    if gateway.deleted:
        return Decision(gateway.status)
    if gateway.delete_requested:
        return _decide_deletion(gateway)
    match gateway.status:
        case S.SUBMITTED:
            return Decision(S.PROVISIONING, wake=tuple(one.key for one in gateway.replicas), again=True)
        case S.PROVISIONING:
            return _decide_provisioning(gateway)
        case S.RUNNING | S.FAILED:
            return Decision(gateway.status)
        case _:
            assert_never(gateway.status)


def _decide_provisioning(gateway: GatewaySnapshot) -> Decision[GatewayStatus]:
    ended = [one for one in gateway.replicas if one.status.is_finished()]
    if ended:
        return Decision(S.FAILED, message=ended[0].message or "one of its machines has ended")
    if all(one.status is GatewayReplicaStatus.RUNNING for one in gateway.replicas):
        return Decision(S.RUNNING)
    return Decision(S.PROVISIONING)


def _decide_deletion(gateway: GatewaySnapshot) -> Decision[GatewayStatus]:
    """Its machines see for themselves that it is to go."""
    left = tuple(one.key for one in gateway.replicas if not one.status.is_finished())
    if left:
        return Decision(gateway.status, wake=left)
    return Decision(gateway.status, writes=(MarkDeleted(),))

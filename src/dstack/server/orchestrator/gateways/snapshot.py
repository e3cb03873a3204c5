"""What is known of a gateway, and what is recorded beside a change of its status."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.events import EventTargetType
from dstack.core.gateways import GatewayReplicaStatus, GatewayStatus
from dstack.server.db.tables import GatewayReplicaRow, GatewayRow
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind
from dstack.server.orchestrator.gateways import rules
from dstack.server.orchestrator.gateways.rules import GatewaySnapshot, MarkDeleted, ReplicaFacts


class GatewayKind:
    """See `decision.ResourceKind`."""

    kind = Kind.GATEWAY
    effects: Mapping[type[Effect], EffectHandler] = {}

    async def load(self, session: AsyncSession, id: UUID) -> GatewaySnapshot | None:
        """Two queries."""
        row = await session.get(GatewayRow, id)
        if row is None:
            return None
        replicas = select(GatewayReplicaRow).where(GatewayReplicaRow.gateway_id == id)
        found = await session.scalars(replicas.order_by(GatewayReplicaRow.replica_num))
        return GatewaySnapshot(
            id=row.id,
            project_id=row.project_id,
            name=row.name,
            status=GatewayStatus(row.status),
            replicas=tuple(_facts(one) for one in found),
            delete_requested=row.delete_requested,
            deleted=row.deleted,
        )

    def decide(self, snapshot: GatewaySnapshot, now: datetime) -> Decision[GatewayStatus]:
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: GatewaySnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """This row and one event."""
        values: dict[str, Any] = {}
        target = told.target(EventTargetType.GATEWAY, snapshot.id, snapshot.name, snapshot.project_id)
        if MarkDeleted() in decision.writes:
            values["deleted"] = True
            await told.record(session, "Gateway deleted", target)
        if decision.status is not snapshot.status:
            values["status_message"] = decision.message
            change = (snapshot.status.value, decision.status.value)
            await told.record(session, told.change("Gateway", *change, message=decision.message), target)
        if values:
            await session.execute(update(GatewayRow).where(GatewayRow.id == snapshot.id).values(**values))

    def priority(self, snapshot: GatewaySnapshot) -> int:
        return 0


def _facts(row: GatewayReplicaRow) -> ReplicaFacts:
    message = row.status_message and f"{row.hostname}: {row.status_message}"
    return ReplicaFacts(row.id, GatewayReplicaStatus(row.status), message)


KIND = GatewayKind()

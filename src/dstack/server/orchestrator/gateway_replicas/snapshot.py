"""What is known of a machine of a gateway, and what is recorded beside a change of its status."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.events import EventTargetType
from dstack.core.gateways import GatewayReplicaStatus
from dstack.server.db.engine import wake
from dstack.server.db.tables import GatewayReplicaRow, GatewayRow
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind
from dstack.server.orchestrator.gateway_replicas import effects, rules
from dstack.server.orchestrator.gateway_replicas.rules import ReplicaSnapshot


class GatewayReplicaKind:
    """See `decision.ResourceKind`."""

    kind = Kind.GATEWAY_REPLICA
    effects: Mapping[type[Effect], EffectHandler] = effects.HANDLERS

    async def load(self, session: AsyncSession, id: UUID) -> ReplicaSnapshot | None:
        """One query."""
        query = select(GatewayReplicaRow, GatewayRow).join(
            GatewayRow, GatewayRow.id == GatewayReplicaRow.gateway_id
        )
        found = (await session.execute(query.where(GatewayReplicaRow.id == id))).one_or_none()
        if found is None:
            return None
        row, gateway = found
        return ReplicaSnapshot(
            id=row.id,
            gateway_id=gateway.id,
            gateway_name=gateway.name,
            project_id=gateway.project_id,
            replica_num=row.replica_num,
            status=GatewayReplicaStatus(row.status),
            created_at=row.created_at,
            attempts=row.attempts,
            last_error=row.last_error,
            is_installed=row.installed_version is not None,
            failure=row.failure,
            is_gone=row.is_gone,
            delete_requested=gateway.delete_requested,
        )

    def decide(self, snapshot: ReplicaSnapshot, now: datetime) -> Decision[GatewayReplicaStatus]:
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: ReplicaSnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """This row, and one event."""
        if decision.status is snapshot.status:
            return
        if decision.message is not None:
            own = update(GatewayReplicaRow).where(GatewayReplicaRow.id == snapshot.id)
            await session.execute(own.values(status_message=decision.message))
        name = f"{snapshot.gateway_name}-{snapshot.replica_num}"
        change = (snapshot.status.value, decision.status.value)
        await told.record(
            session,
            told.change("Gateway replica", *change, message=decision.message),
            told.target(EventTargetType.GATEWAY_REPLICA, snapshot.id, name, snapshot.project_id),
        )
        wake(session, f"gateway_replica:{snapshot.id}")

    def priority(self, snapshot: ReplicaSnapshot) -> int:
        return 0


KIND = GatewayReplicaKind()

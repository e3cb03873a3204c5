"""What is known of a fleet, and what is recorded beside a change of its status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.events import EventTargetType
from dstack.core.fleets import FleetSpec, FleetStatus
from dstack.core.instances import InstanceStatus
from dstack.server.db.engine import wake
from dstack.server.db.tables import FleetRow, InstanceRow
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind
from dstack.server.orchestrator.fleets import rules
from dstack.server.orchestrator.fleets.rules import (
    CreateInstances,
    FleetSnapshot,
    MemberFacts,
    ResetAttempts,
    TerminateInstances,
)
from dstack.server.planning.combining import kept, of_fleet
from dstack.server.planning.new_instance import instance_values
from dstack.server.planning.offers import offer_mismatch, stored_offer


class FleetKind:
    """See `decision.ResourceKind`. A fleet touches the database alone."""

    kind = Kind.FLEET
    effects: Mapping[type[Effect], EffectHandler] = {}

    async def load(self, session: AsyncSession, id: UUID) -> FleetSnapshot | None:
        """Two queries."""
        row = await session.scalar(select(FleetRow).where(FleetRow.id == id))
        if row is None:
            return None
        columns = select(
            InstanceRow.id,
            InstanceRow.instance_num,
            InstanceRow.status,
            InstanceRow.terminate_requested,
            InstanceRow.backend,
            InstanceRow.offer,
            InstanceRow.busy_blocks,
        )
        living = (InstanceRow.fleet_id == id, InstanceRow.status != InstanceStatus.TERMINATED.value)
        members = (await session.execute(columns.where(*living))).all()
        return _snapshot(row, members)

    def decide(self, snapshot: FleetSnapshot, now: datetime) -> Decision[FleetStatus]:
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: FleetSnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """This row, new instances, intent for others, and one event."""
        values: dict[str, Any] = {}
        for write in decision.writes:
            match write:
                case CreateInstances(nums, is_retry):
                    await _create(session, snapshot, nums, now)
                    values["last_consolidated_at"] = now
                    if is_retry:
                        values["consolidation_attempt"] = snapshot.consolidation_attempt + 1
                case TerminateInstances(ids, reason):
                    which = (InstanceRow.id.in_(ids), InstanceRow.terminate_requested.is_(None))
                    asked = update(InstanceRow).where(*which)
                    await session.execute(asked.values(terminate_requested=reason.value))
                case ResetAttempts():
                    values["consolidation_attempt"] = 0
        if decision.status is FleetStatus.TERMINATED and snapshot.status is not decision.status:
            values["deleted"] = True
        if values:
            await session.execute(update(FleetRow).where(FleetRow.id == snapshot.id).values(**values))
        if decision.status is not snapshot.status:
            text = told.change("Fleet", snapshot.status.value, decision.status.value)
            target = told.target(EventTargetType.FLEET, snapshot.id, snapshot.name, snapshot.project_id)
            await told.record(session, text, target)

    def priority(self, snapshot: FleetSnapshot) -> int:
        return 0


def _member(row: Any, spec: str) -> MemberFacts:
    return MemberFacts(
        row.id,
        row.instance_num,
        InstanceStatus(row.status),
        row.terminate_requested is not None,
        is_free=row.busy_blocks == 0,
        mismatch=None if row.offer is None else _mismatch(row.backend, row.offer, spec),
    )


@lru_cache(maxsize=1024)
def _mismatch(backend: str, offer: str, spec: str) -> str | None:
    """Why the fleet would not take such an instance any more. The same for all of its hosts that are alike."""
    fleet = FleetSpec.model_validate_json(spec, extra="ignore")
    terms, blocks = kept(fleet), fleet.configuration.blocks
    return offer_mismatch(backend, stored_offer(offer), terms.requirements, terms.limits, blocks=blocks)


def _snapshot(row: FleetRow, members: Sequence[Any]) -> FleetSnapshot:
    nodes = json.loads(row.spec)["configuration"].get("nodes") or {"min": 0}
    return FleetSnapshot(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        status=FleetStatus(row.status),
        instances=tuple(_member(member, row.spec) for member in members),
        min_nodes=nodes["min"],
        target_nodes=nodes.get("target", nodes["min"]),
        max_nodes=nodes.get("max"),
        is_filled=row.last_consolidated_at is not None,
        delete_requested=row.deleted_at is not None,
        consolidation_attempt=row.consolidation_attempt,
        last_consolidated_at=row.last_consolidated_at,
    )


async def _create(session: AsyncSession, fleet: FleetSnapshot, nums: Sequence[int], now: datetime) -> None:
    text = (await session.execute(select(FleetRow.spec).where(FleetRow.id == fleet.id))).scalar_one()
    terms = of_fleet(FleetSpec.model_validate_json(text, extra="ignore"))
    new = partial(
        instance_values, terms, fleet_id=fleet.id, fleet_name=fleet.name, project_id=fleet.project_id, now=now
    )
    rows = [new(num=num) for num in nums]
    await session.execute(insert(InstanceRow), rows)
    wake(session, *(f"instance:{row['id']}" for row in rows))


KIND = FleetKind()

"""Fleets: what a project keeps compute in."""

from __future__ import annotations

import uuid
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.canonical import dump_json
from dstack.core.events import EventTargetType
from dstack.core.fleets import FleetSpec, FleetStatus
from dstack.server import clock, events
from dstack.server.db.engine import wake
from dstack.server.db.tables import FleetRow


async def add_fleet(
    session: AsyncSession, project_id: UUID, spec: FleetSpec, *, actor: UUID | None, secrets: str | None = None
) -> FleetRow:
    """The row, its event, and the wake-ups. The spec has a name and no private keys."""
    name = spec.configuration.name
    assert name is not None
    now = clock.now()
    row = FleetRow(
        id=uuid.uuid4(),
        project_id=project_id,
        name=name,
        spec=dump_json(spec),
        secrets=secrets,
        created_at=now,
        last_processed_at=now,
        status=FleetStatus.ACTIVE.value,
    )
    session.add(row)
    await session.flush()
    target = events.Target(EventTargetType.FLEET.value, row.id, name, project_id)
    await events.record(session, "Fleet created", actor=actor, targets=[target])
    wake(session, f"fleet:{row.id}", f"placement:{project_id}")
    return row

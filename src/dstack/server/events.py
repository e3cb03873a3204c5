"""What happened, told in the transaction that makes it so."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server import clock
from dstack.server.db.tables import EventRow, EventTargetRow


class Target(NamedTuple):
    """What an event is about. `type` is a value of `EventTargetType`: `run`, `job`, `instance`, …"""

    type: str
    id: UUID
    name: str
    project_id: UUID | None = None


async def record(session: AsyncSession, message: str, *, actor: UUID | None, targets: Sequence[Target]) -> UUID:
    """Two inserts. `actor` is a user, or None for the system. Returns the event's id."""
    event_id = uuid.uuid4()
    row = {"id": event_id, "recorded_at": clock.now(), "message": message, "actor_user_id": actor}
    await session.execute(insert(EventRow), row)
    if targets:
        await session.execute(insert(EventTargetRow), [_target_row(event_id, target) for target in targets])
    return event_id


def _target_row(event_id: UUID, target: Target) -> dict[str, object]:
    return {
        "id": uuid.uuid4(),
        "event_id": event_id,
        "project_id": target.project_id,
        "entity_type": target.type,
        "entity_id": target.id,
        "entity_name": target.name,
    }

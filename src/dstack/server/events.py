"""What happened, told in the transaction that makes it so."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple, cast
from uuid import UUID

from sqlalchemy import Table, insert
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server import clock
from dstack.server.db.tables import EventRow, EventTargetRow

# On the tables: the mapper's way of inserting takes longer, and every change of a status comes here.
_INSERT_EVENT = insert(cast(Table, EventRow.__table__))
_INSERT_TARGETS = insert(cast(Table, EventTargetRow.__table__))


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
    await session.execute(_INSERT_EVENT, row)
    if targets:
        await session.execute(_INSERT_TARGETS, [_target_row(event_id, target) for target in targets])
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

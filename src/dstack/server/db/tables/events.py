"""What happened: written in the transaction that changed it."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import HasId, Row, references


class EventRow(HasId, Row):
    __tablename__ = "events"
    __table_args__ = (Index("ix_events_recorded", "recorded_at", "id"),)

    recorded_at: Mapped[datetime]
    message: Mapped[str]
    actor_user_id: Mapped[uuid.UUID | None] = mapped_column(references("users.id"), index=True)
    """None: the system."""


class EventTargetRow(HasId, Row):
    __tablename__ = "event_targets"
    __table_args__ = (
        Index("ix_event_targets_entity", "entity_type", "entity_id"),
        Index("ix_event_targets_event", "event_id", "project_id", "entity_type"),
    )

    event_id: Mapped[uuid.UUID] = mapped_column(references("events.id", ondelete="CASCADE"))
    project_id: Mapped[uuid.UUID | None] = mapped_column(references("projects.id", ondelete="CASCADE"), index=True)
    entity_type: Mapped[str] = mapped_column(String(32))
    entity_id: Mapped[uuid.UUID]
    entity_name: Mapped[str]

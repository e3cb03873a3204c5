"""Column types and mix-ins that all tables share."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import DateTime, ForeignKey, MetaData, String, Text, Uuid
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC in Python, naive UTC with microseconds in both engines."""

    impl = DateTime(timezone=False)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without time zone would be ambiguous; pass an aware one")
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=timezone.utc)


class Row(DeclarativeBase):
    """Base of all rows. Constraint names are fixed, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, uuid.UUID: Uuid, str: Text}  # noqa: RUF012


def references(column: str, *, ondelete: str | None = None) -> ForeignKey:
    """A foreign key that is checked at the commit, so that rows may be added in any order."""
    return ForeignKey(column, ondelete=ondelete, deferrable=True, initially="DEFERRED")


class HasId:
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)


class Reconciled(HasId):
    """A row that the orchestrator drives: its status, when to look again, and who holds it.

    `version` counts writes of the engine; with `lease_token` it guards results against a late worker.
    """

    status: Mapped[str] = mapped_column(String(32), index=True)
    wake_at: Mapped[datetime | None] = mapped_column(index=True)
    last_processed_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    """Failed effects in a row; drives the back-off."""
    last_error: Mapped[str | None]
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_token: Mapped[uuid.UUID | None]
    lease_until: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(default=0)

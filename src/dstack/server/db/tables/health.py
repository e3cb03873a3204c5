"""How well instances were."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import Row


class InstanceHealthCheckRow(Row):
    """What an agent told when it changed: it holds until the next one. Without a foreign key: checks of instances
    that are gone end with their time to live."""

    __tablename__ = "instance_health_checks"

    instance_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    collected_at: Mapped[datetime] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    problems: Mapped[str]
    """JSON list of `{status, message}`."""

"""What projects share: exports, what is in them, and who uses them."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import HasId, Row, references


class ExportRow(HasId, Row):
    __tablename__ = "exports"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    is_global: Mapped[bool] = mapped_column(default=False)
    """All projects use it, without rows in `imports`."""
    created_at: Mapped[datetime]


class ExportedFleetRow(Row):
    __tablename__ = "exported_fleets"

    export_id: Mapped[uuid.UUID] = mapped_column(references("exports.id", ondelete="CASCADE"), primary_key=True)
    fleet_id: Mapped[uuid.UUID] = mapped_column(
        references("fleets.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class ExportedGatewayRow(Row):
    __tablename__ = "exported_gateways"

    export_id: Mapped[uuid.UUID] = mapped_column(references("exports.id", ondelete="CASCADE"), primary_key=True)
    gateway_id: Mapped[uuid.UUID] = mapped_column(
        references("gateways.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class ImportRow(HasId, Row):
    __tablename__ = "imports"
    __table_args__ = (UniqueConstraint("export_id", "project_id"),)

    export_id: Mapped[uuid.UUID] = mapped_column(references("exports.id", ondelete="CASCADE"))
    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]

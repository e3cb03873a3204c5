"""Gateways and their machines."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import Reconciled, Row, references


class GatewayRow(Reconciled, Row):
    __tablename__ = "gateways"
    __table_args__ = (Index("ix_gateways_project_name", "project_id", "name"),)

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime]
    configuration: Mapped[str]
    """Canonical JSON of `GatewayConfiguration`."""
    wildcard_domain: Mapped[str | None]
    hostname: Mapped[str | None]
    """Of the load balancer, or of the only machine."""
    status_message: Mapped[str | None]
    delete_requested: Mapped[bool] = mapped_column(default=False)
    deleted: Mapped[bool] = mapped_column(default=False)


class GatewayReplicaRow(Reconciled, Row):
    __tablename__ = "gateway_replicas"

    gateway_id: Mapped[uuid.UUID] = mapped_column(references("gateways.id", ondelete="CASCADE"), index=True)
    replica_num: Mapped[int]
    created_at: Mapped[datetime]
    backend: Mapped[str | None] = mapped_column(String(32))
    region: Mapped[str | None] = mapped_column(String(100))
    hostname: Mapped[str | None]
    status_message: Mapped[str | None]

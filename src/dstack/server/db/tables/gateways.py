"""Gateways and their machines."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Index, String, false
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
    """Why it failed."""
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
    """Why it ended, or what stands in its way."""
    ssh_target: Mapped[str | None]
    """Encrypted (`gateway_replicas.ssh_target`): `hosts.ssh.target.SSHTarget` of a host that was there already."""
    host_key: Mapped[str | None]
    """The key that the host has shown at first contact, pinned."""
    jump_host_key: Mapped[str | None]
    """The same of the host on the way to it."""
    installed_version: Mapped[str | None]
    """Of the gateway app that has answered there; None: not installed yet."""
    failure: Mapped[str | None]
    """Why the gateway cannot be installed there."""
    is_gone: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Nothing of the gateway is left there."""

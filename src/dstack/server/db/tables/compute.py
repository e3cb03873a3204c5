"""Fleets and instances."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import Reconciled, Row, references


class FleetRow(Reconciled, Row):
    __tablename__ = "fleets"
    __table_args__ = (Index("ix_fleets_project_name", "project_id", "name"),)

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    spec: Mapped[str]
    """Canonical JSON of `FleetSpec`, without private keys."""
    secrets: Mapped[str | None]
    """Encrypted JSON (`fleets.secrets`): SSH private keys of hosts."""
    status_message: Mapped[str | None]
    created_at: Mapped[datetime]
    deleted: Mapped[bool] = mapped_column(default=False)
    deleted_at: Mapped[datetime | None]
    consolidation_attempt: Mapped[int] = mapped_column(default=0)
    last_consolidated_at: Mapped[datetime | None]


class InstanceRow(Reconciled, Row):
    __tablename__ = "instances"
    __table_args__ = (Index("ix_instances_project_status", "project_id", "status"),)

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    fleet_id: Mapped[uuid.UUID | None] = mapped_column(references("fleets.id"), index=True)
    name: Mapped[str] = mapped_column(String(120))
    """Also the name in the backend: on record before the instance is made, so making it is safe to repeat."""
    instance_num: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    termination_reason: Mapped[str | None] = mapped_column(String(64))
    termination_reason_message: Mapped[str | None]
    terminate_requested: Mapped[str | None] = mapped_column(String(64))
    """Intent: the reason with which an operation or another resource wants it gone."""
    backend: Mapped[str | None] = mapped_column(String(32))
    """The backend's own type (`local`, `fake`, …), not the value on the wire."""
    region: Mapped[str | None] = mapped_column(String(100))
    price: Mapped[float | None]
    offer: Mapped[str | None]
    """Canonical JSON of `InstanceOfferWithAvailability`."""
    address: Mapped[str | None]
    """JSON of `backends.base.InstanceAddress`."""
    agent_info: Mapped[str | None]
    """JSON of `AgentInfo` as last seen."""
    profile: Mapped[str | None]
    requirements: Mapped[str | None]
    total_blocks: Mapped[int | None]
    busy_blocks: Mapped[int] = mapped_column(default=0)
    idle_duration: Mapped[int | None]
    """Seconds; -1 never."""
    last_job_processed_at: Mapped[datetime | None]
    provisioning_deadline: Mapped[datetime | None]
    unreachable_since: Mapped[datetime | None]
    health: Mapped[str] = mapped_column(String(16), default="healthy")
    host_key: Mapped[str | None]
    """Pinned SSH host key (better B16)."""
    jump_host_key: Mapped[str | None]
    """That of the host that it is reached through."""
    ssh_hostname: Mapped[str | None] = mapped_column(String(255), index=True)
    """Set for a host of an SSH fleet."""
    ssh_target: Mapped[str | None]
    """Encrypted JSON of `hosts.ssh.SSHTarget` (`instances.ssh_target`), without the pinned keys."""
    ssh_details: Mapped[str | None]
    """JSON of what the fleet says of the host: `internal_ip`, `network`, `blocks`."""
    watcher: Mapped[str | None] = mapped_column(String(64))
    """The replica that follows this host's events."""
    watcher_until: Mapped[datetime | None]
    deleted: Mapped[bool] = mapped_column(default=False)

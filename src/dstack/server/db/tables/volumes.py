"""Volumes, where they are attached, and which jobs mount them."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import Reconciled, Row, references


class VolumeRow(Reconciled, Row):
    """`status` is a `VolumeStatus`, or `deleted`."""

    __tablename__ = "volumes"
    __table_args__ = (
        Index("ix_volumes_project_name", "project_id", "name"),
        Index("ix_volumes_created", "created_at", "id"),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    user_id: Mapped[uuid.UUID] = mapped_column(references("users.id"))
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime]
    configuration: Mapped[str]
    """Canonical JSON of `VolumeConfiguration`."""
    is_external: Mapped[bool] = mapped_column(default=False)
    """Registered by its `volume_id`: the disk is the user's own and stays when the volume is deleted."""
    backend: Mapped[str | None] = mapped_column(String(32))
    """The own type of the backend that made the disk."""
    provisioning_data: Mapped[str | None]
    """Canonical JSON of `VolumeProvisioningData`, once there is a disk."""
    failure: Mapped[str | None]
    """Why the backend will never make the disk."""
    status_message: Mapped[str | None]
    last_job_processed_at: Mapped[datetime | None]
    detached_from: Mapped[str | None]
    """JSON list of the ids of instances from which the backend has detached it."""
    delete_requested: Mapped[bool] = mapped_column(default=False)
    is_gone: Mapped[bool] = mapped_column(default=False)
    """The backend has confirmed that there is no disk any more."""
    deleted: Mapped[bool] = mapped_column(default=False)
    deleted_at: Mapped[datetime | None]


class VolumeAttachmentRow(Row):
    """On record before the backend is asked to attach, and until it has detached."""

    __tablename__ = "volume_attachments"

    volume_id: Mapped[uuid.UUID] = mapped_column(references("volumes.id", ondelete="CASCADE"), primary_key=True)
    instance_id: Mapped[uuid.UUID] = mapped_column(
        references("instances.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class JobVolumeRow(Row):
    """A job mounts a volume; on record from the moment it is given an instance."""

    __tablename__ = "job_volumes"

    job_id: Mapped[uuid.UUID] = mapped_column(references("jobs.id", ondelete="CASCADE"), primary_key=True)
    volume_id: Mapped[uuid.UUID] = mapped_column(
        references("volumes.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    path: Mapped[str] = mapped_column(String(1000), primary_key=True)
    """In the job."""

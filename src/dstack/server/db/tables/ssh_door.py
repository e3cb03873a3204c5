"""The SSH door's own key."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped

from dstack.server.db.tables.base import HasId, Row


class SshHostKeyRow(HasId, Row):
    """One row, the same for all replicas, so that clients meet one host key whichever of them answers."""

    __tablename__ = "ssh_host_keys"

    private_key: Mapped[str]
    """Encrypted (`ssh_host_keys.private_key`)."""
    public_key: Mapped[str]
    created_at: Mapped[datetime]

"""Users, their tokens and keys."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import HasId, Row


class UserRow(HasId, Row):
    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(100), unique=True)
    global_role: Mapped[str] = mapped_column(String(16))
    email: Mapped[str | None]
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]
    deleted: Mapped[bool] = mapped_column(default=False)
    token: Mapped[str]
    """Encrypted (`users.token`)."""
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 in hex: what a token is looked up by."""
    ssh_private_key: Mapped[str | None]
    """Encrypted (`users.ssh_private_key`)."""
    ssh_public_key: Mapped[str | None]

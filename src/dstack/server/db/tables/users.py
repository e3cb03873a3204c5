"""Users, their tokens and keys."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import HasId, Row, references


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


class UserTokenRow(HasId, Row):
    """A further token of a user (better B19)."""

    __tablename__ = "user_tokens"
    __table_args__ = (UniqueConstraint("user_id", "name"),)

    user_id: Mapped[uuid.UUID] = mapped_column(references("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 in hex; the token itself is nowhere."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Written at most once an hour."""
    project_ids: Mapped[str | None]
    """JSON list; None: all projects of the user."""
    services_only: Mapped[bool] = mapped_column(default=False)


class UserPublicKeyRow(HasId, Row):
    """A key with which a user opens jobs, beside the pair that the server made."""

    __tablename__ = "user_public_keys"
    __table_args__ = (UniqueConstraint("user_id", "fingerprint"),)

    user_id: Mapped[uuid.UUID] = mapped_column(references("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    type: Mapped[str] = mapped_column(String(64))
    fingerprint: Mapped[str] = mapped_column(String(100))
    """`SHA256:…`, as `ssh-keygen -l` shows it."""
    key: Mapped[str]
    """Type and base64, without the comment."""
    added_at: Mapped[datetime]

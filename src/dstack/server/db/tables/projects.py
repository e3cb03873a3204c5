"""Projects, members, backends, secrets."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from dstack.server.db.tables.base import HasId, Reconciled, Row, references


class ProjectRow(Reconciled, Row):
    """`status` is always `active`: the engine drives the project's queue of waiting jobs (kind `placement`)."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(String(100), unique=True)
    """A deleted project keeps its row under another name."""
    original_name: Mapped[str | None]
    owner_id: Mapped[uuid.UUID] = mapped_column(references("users.id"), index=True)
    is_public: Mapped[bool] = mapped_column(default=False)
    templates_repo: Mapped[str | None]
    created_at: Mapped[datetime]
    deleted: Mapped[bool] = mapped_column(default=False)
    default_gateway_id: Mapped[uuid.UUID | None]
    """Of the project's own or of an imported one. Without a foreign key, for gateways refer to projects."""
    ssh_private_key: Mapped[str]
    """Encrypted (`projects.ssh_private_key`)."""
    ssh_public_key: Mapped[str]


class MemberRow(HasId, Row):
    __tablename__ = "members"
    __table_args__ = (UniqueConstraint("project_id", "user_id"),)

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    user_id: Mapped[uuid.UUID] = mapped_column(references("users.id", ondelete="CASCADE"), index=True)
    project_role: Mapped[str] = mapped_column(String(16))
    member_num: Mapped[int] = mapped_column(default=0)


class BackendRow(HasId, Row):
    __tablename__ = "backends"
    __table_args__ = (UniqueConstraint("project_id", "type"),)

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(32))
    config: Mapped[str]
    """JSON without secrets."""
    auth: Mapped[str]
    """Encrypted JSON (`backends.auth`)."""
    created_at: Mapped[datetime]


class SecretRow(HasId, Row):
    __tablename__ = "secrets"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    value: Mapped[str]
    """Encrypted (`secrets.value`)."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class RepoRow(HasId, Row):
    __tablename__ = "repos"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    project_id: Mapped[uuid.UUID] = mapped_column(references("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    """The `repo_id` of the API."""
    type: Mapped[str] = mapped_column(String(16))
    info: Mapped[str]
    """JSON."""


class RepoCredsRow(HasId, Row):
    __tablename__ = "repo_creds"
    __table_args__ = (UniqueConstraint("repo_id", "user_id"),)

    repo_id: Mapped[uuid.UUID] = mapped_column(references("repos.id", ondelete="CASCADE"))
    user_id: Mapped[uuid.UUID] = mapped_column(references("users.id", ondelete="CASCADE"))
    creds: Mapped[str]
    """Encrypted JSON (`repo_creds.creds`)."""


class CodeRow(HasId, Row):
    __tablename__ = "codes"
    __table_args__ = (UniqueConstraint("repo_id", "blob_hash"),)

    repo_id: Mapped[uuid.UUID] = mapped_column(references("repos.id", ondelete="CASCADE"))
    blob_hash: Mapped[str] = mapped_column(String(64))
    blob: Mapped[bytes | None]
    """None: in the file store."""


class FileArchiveRow(HasId, Row):
    __tablename__ = "file_archives"
    __table_args__ = (UniqueConstraint("user_id", "blob_hash"),)

    user_id: Mapped[uuid.UUID] = mapped_column(references("users.id", ondelete="CASCADE"))
    blob_hash: Mapped[str] = mapped_column(String(64))
    blob: Mapped[bytes | None]
    """None: in the file store."""

"""What the SSH door asks: which job somebody wants to enter, and whether they may."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.users import GlobalRole
from dstack.server.db.tables import (
    InstanceRow,
    JobRow,
    MemberRow,
    ProjectRow,
    RunRow,
    UserPublicKeyRow,
    UserRow,
)


class DoorJob(NamedTuple):
    """A submission of a job, as the door needs it."""

    id: UUID
    status: str
    job_name: str
    project_id: UUID
    project_name: str
    project_key: str
    """The project's public key: a separate SSH proxy comes with it."""
    run_id: UUID
    run_name: str
    run_user_id: UUID
    run_spec: str
    provisioning_data: str | None
    runtime_data: str | None
    address: str | None
    """JSON of the host's `InstanceAddress`."""

    @property
    def run_key(self) -> str | None:
        """The public key that was submitted with the run."""
        key: str | None = json.loads(self.run_spec).get("ssh_key_pub")
        return key

    @property
    def hostname(self) -> str | None:
        """Of its host, as clients are told."""
        name: str | None = json.loads(self.provisioning_data or "{}").get("hostname")
        return name

    @property
    def username(self) -> str | None:
        """Whose processes the job's are, once that is known."""
        name: str | None = json.loads(self.runtime_data or "{}").get("username")
        return name


class DoorUser(NamedTuple):
    """An active user who may enter jobs of a project."""

    id: UUID
    name: str


async def find_job(session: AsyncSession, job_id: UUID) -> DoorJob | None:
    """Of runs that are deleted there are none."""
    query = (
        select(
            JobRow.id,
            JobRow.status,
            JobRow.job_name,
            ProjectRow.id,
            ProjectRow.name,
            ProjectRow.ssh_public_key,
            RunRow.id,
            RunRow.run_name,
            RunRow.user_id,
            RunRow.run_spec,
            JobRow.provisioning_data,
            JobRow.runtime_data,
            InstanceRow.address,
        )
        .join(RunRow, RunRow.id == JobRow.run_id)
        .join(ProjectRow, ProjectRow.id == JobRow.project_id)
        .outerjoin(InstanceRow, InstanceRow.id == JobRow.instance_id)
        .where(JobRow.id == job_id, RunRow.deleted.is_(False), ProjectRow.deleted.is_(False))
    )
    row = (await session.execute(query)).one_or_none()
    return None if row is None else DoorJob._make(row)


async def find_job_status(session: AsyncSession, job_id: UUID) -> str | None:
    status: str | None = await session.scalar(select(JobRow.status).where(JobRow.id == job_id))
    return status


async def find_user_of_key(session: AsyncSession, project_id: UUID, key: str, fingerprint: str) -> DoorUser | None:
    """Whose key it is, among those who may enter. `key`: type and base64; `fingerprint`: `SHA256:…`."""
    registered = and_(UserPublicKeyRow.user_id == UserRow.id, UserPublicKeyRow.fingerprint == fingerprint)
    query = (
        select(UserRow.id, UserRow.name, UserRow.ssh_public_key, UserPublicKeyRow.key)
        .outerjoin(UserPublicKeyRow, registered)
        .where(_may_enter(project_id))
        .where(or_(UserPublicKeyRow.id.is_not(None), UserRow.ssh_public_key.startswith(key, autoescape=True)))
    )
    for user_id, name, made, added in await session.execute(query):
        if key in (without_comment(made or ""), added):
            return DoorUser(user_id, name)
    return None


async def find_user(session: AsyncSession, project_id: UUID, user_id: UUID) -> DoorUser | None:
    """None unless that user may enter jobs of the project."""
    query = select(UserRow.id, UserRow.name).where(_may_enter(project_id), UserRow.id == user_id)
    row = (await session.execute(query)).one_or_none()
    return None if row is None else DoorUser(*row)


async def list_keys(session: AsyncSession, project_id: UUID) -> list[str]:
    """All keys of all who may enter, type and base64 each."""
    made = await session.scalars(select(UserRow.ssh_public_key).where(_may_enter(project_id)))
    added = await session.scalars(
        select(UserPublicKeyRow.key)
        .join(UserRow, UserRow.id == UserPublicKeyRow.user_id)
        .where(_may_enter(project_id))
    )
    return unique_keys([key for key in (*made, *added) if key])


def unique_keys(keys: Sequence[str]) -> list[str]:
    """Without comments and doubles."""
    return list(dict.fromkeys(without_comment(key) for key in keys))


def without_comment(key: str) -> str:
    """Type and base64 of a line in OpenSSH's format."""
    return " ".join(key.split()[:2])


def _may_enter(project_id: UUID) -> ColumnElement[bool]:
    """Active members of the project, and admins of the server."""
    members = select(MemberRow.user_id).where(MemberRow.project_id == project_id)
    is_entitled = or_(UserRow.global_role == GlobalRole.ADMIN.value, UserRow.id.in_(members))
    return and_(UserRow.active.is_(True), UserRow.deleted.is_(False), is_entitled)

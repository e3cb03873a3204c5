"""Queries about projects, their members and backends."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.tables import BackendRow, MemberRow, ProjectRow, SecretRow, UserRow


async def find_by_name(session: AsyncSession, name: str) -> ProjectRow | None:
    where = (ProjectRow.name == name, ProjectRow.deleted.is_(False))
    return await session.scalar(select(ProjectRow).where(*where))


async def find_by_id(session: AsyncSession, project_id: UUID) -> ProjectRow | None:
    return await session.get(ProjectRow, project_id)


async def list_all(session: AsyncSession) -> list[ProjectRow]:
    """Oldest first."""
    query = select(ProjectRow).where(ProjectRow.deleted.is_(False))
    return list(await session.scalars(query.order_by(ProjectRow.created_at, ProjectRow.id)))


async def list_of_user(session: AsyncSession, user_id: UUID, *, with_public: bool = False) -> list[ProjectRow]:
    """Those the user is a member of, and the public ones if asked; oldest first."""
    mine = select(MemberRow.project_id).where(MemberRow.user_id == user_id)
    may_see: ColumnElement[bool] = ProjectRow.id.in_(mine)
    if with_public:
        may_see = or_(may_see, ProjectRow.is_public.is_(True))
    query = select(ProjectRow).where(ProjectRow.deleted.is_(False), may_see)
    return list(await session.scalars(query.order_by(ProjectRow.created_at, ProjectRow.id)))


async def find_member(session: AsyncSession, project_id: UUID, user_id: UUID) -> MemberRow | None:
    where = (MemberRow.project_id == project_id, MemberRow.user_id == user_id)
    return await session.scalar(select(MemberRow).where(*where))


async def list_members(
    session: AsyncSession, project_ids: Sequence[UUID]
) -> dict[UUID, list[tuple[MemberRow, UserRow]]]:
    """Of all the projects in one query, each project's in the order of `member_num`."""
    query = (
        select(MemberRow, UserRow)
        .join(UserRow, UserRow.id == MemberRow.user_id)
        .where(MemberRow.project_id.in_(project_ids))
        .order_by(MemberRow.member_num, UserRow.name)
    )
    members: dict[UUID, list[tuple[MemberRow, UserRow]]] = {project_id: [] for project_id in project_ids}
    for member, user in await session.execute(query):
        members[member.project_id].append((member, user))
    return members


async def list_backends(session: AsyncSession, project_ids: Sequence[UUID]) -> dict[UUID, list[BackendRow]]:
    query = select(BackendRow).where(BackendRow.project_id.in_(project_ids)).order_by(BackendRow.type)
    backends: dict[UUID, list[BackendRow]] = {project_id: [] for project_id in project_ids}
    for backend in await session.scalars(query):
        backends[backend.project_id].append(backend)
    return backends


async def list_secrets(session: AsyncSession, project_id: UUID) -> list[SecretRow]:
    query = select(SecretRow).where(SecretRow.project_id == project_id).order_by(SecretRow.name)
    return list(await session.scalars(query))

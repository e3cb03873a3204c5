"""Which projects a list over all of them may draw from."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.users import GlobalRole
from dstack.server.access import Caller
from dstack.server.db.tables import MemberRow, ProjectRow


async def named_project_ids(session: AsyncSession, caller: Caller, names: list[str] | None) -> list[UUID] | None:
    """Of the projects whose contents the caller may see, those of these names; None: all there are."""
    if caller.is_admin and names is None:
        return None
    query = select(ProjectRow.id).where(ProjectRow.deleted.is_(False))
    if names is not None:
        query = query.where(ProjectRow.name.in_(names))
    mine = project_ids_of(caller)
    if mine is not None:
        query = query.where(ProjectRow.id.in_(mine))
    return list(await session.scalars(query))


def importing_projects(caller: Caller, names: list[str] | str | None) -> Select[Any]:
    """Those of the caller, as far as named, whose imports a list may show too."""
    query = select(ProjectRow.id).where(ProjectRow.deleted.is_(False))
    if names is not None:
        query = query.where(ProjectRow.name.in_([names] if isinstance(names, str) else names))
    mine = project_ids_of(caller)
    return query if mine is None else query.where(ProjectRow.id.in_(mine))


def project_ids_of(caller: Caller) -> Select[Any] | None:
    """Those whose contents the caller may see: admins all, others theirs, within the token's limit. None: all."""
    if caller.is_admin:
        return None
    limit = caller.limited_to
    if limit is not None and caller.global_role is GlobalRole.ADMIN:
        return select(ProjectRow.id).where(ProjectRow.id.in_(limit))
    joined = select(MemberRow.project_id).where(MemberRow.user_id == caller.user_id)
    return joined if limit is None else joined.where(MemberRow.project_id.in_(limit))

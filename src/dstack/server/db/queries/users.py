"""Queries about users."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.tables import UserRow


async def find_by_token_hash(session: AsyncSession, token_hash: str) -> UserRow | None:
    """The user whose token has this SHA-256; deleted ones are not found, inactive ones are."""
    where = (UserRow.token_hash == token_hash, UserRow.deleted.is_(False))
    return await session.scalar(select(UserRow).where(*where))


async def find_by_name(session: AsyncSession, name: str) -> UserRow | None:
    return await session.scalar(select(UserRow).where(UserRow.name == name, UserRow.deleted.is_(False)))


async def find_by_id(session: AsyncSession, user_id: UUID) -> UserRow | None:
    return await session.get(UserRow, user_id)


async def list_all(session: AsyncSession) -> list[UserRow]:
    """Oldest first."""
    order = (UserRow.created_at, UserRow.id)
    return list(await session.scalars(select(UserRow).where(UserRow.deleted.is_(False)).order_by(*order)))

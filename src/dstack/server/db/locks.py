"""Locks of a name, held until the end of a transaction."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession


async def one_at_a_time(session: AsyncSession, name: str) -> None:
    """Transactions that name the same wait for one another. On SQLite all that write do anyway.

    No row is locked, so nothing else waits: the loop takes leases of rows meanwhile.
    """
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})

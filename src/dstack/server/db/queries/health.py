"""Queries about how well instances are."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from dstack.server.db.tables import InstanceHealthCheckRow, InstanceRow


async def find_newest(session: AsyncSession, instance_id: UUID) -> InstanceHealthCheckRow | None:
    """What holds now."""
    found = await list_checks(session, instance_id, limit=1)
    return found[0] if found else None


async def list_checks(
    session: AsyncSession,
    instance_id: UUID,
    *,
    after: datetime | None = None,
    before: datetime | None = None,
    limit: int | None = None,
) -> list[InstanceHealthCheckRow]:
    """Between these moments, the newest first."""
    check = InstanceHealthCheckRow
    query = select(check).where(check.instance_id == instance_id)
    if after is not None:
        query = query.where(check.collected_at > after)
    if before is not None:
        query = query.where(check.collected_at < before)
    return list(await session.scalars(query.order_by(check.collected_at.desc()).limit(limit)))


async def add(session: AsyncSession, check: InstanceHealthCheckRow) -> InstanceRow | None:
    """The instance as it was before; None when it is gone."""
    instance = await session.get(InstanceRow, check.instance_id)
    if instance is None:
        return None
    session.add(check)
    await session.execute(
        update(InstanceRow)
        .where(InstanceRow.id == check.instance_id)
        .values(health=check.status)
        .execution_options(synchronize_session=False)
    )
    return instance


async def purge(session: AsyncSession, before: datetime) -> None:
    """Deletes older checks, but for the newest of each instance that is there."""
    check, newer = InstanceHealthCheckRow, aliased(InstanceHealthCheckRow)
    is_outdated = exists().where(newer.instance_id == check.instance_id, newer.collected_at > check.collected_at)
    is_there = check.instance_id.in_(select(InstanceRow.id).where(InstanceRow.deleted.is_(False)))
    old = delete(check).where(check.collected_at < before, is_outdated | ~is_there)
    await session.execute(old.execution_options(synchronize_session=False))

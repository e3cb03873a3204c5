"""Queries about projects, their members and backends."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.tables import BackendRow


async def list_backends(session: AsyncSession, project_ids: Sequence[UUID]) -> dict[UUID, list[BackendRow]]:
    query = select(BackendRow).where(BackendRow.project_id.in_(project_ids)).order_by(BackendRow.type)
    backends: dict[UUID, list[BackendRow]] = {project_id: [] for project_id in project_ids}
    for backend in await session.scalars(query):
        backends[backend.project_id].append(backend)
    return backends

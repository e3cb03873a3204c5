"""What the servers have seen of the requests to services, in rows that each writes for itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.tables import RunRow, ServiceLoadRow
from dstack.server.db.tables.runs import RUN_IS_ACTIVE

FRESH_FOR = timedelta(seconds=20)
"""A row that is older is of a server that is gone."""
KEPT_FOR = timedelta(hours=1)
WINDOWS = (30, 60, 300)


@dataclass(frozen=True)
class Seen:
    """By all servers together."""

    since: datetime
    """Since when each of them has counted."""
    requests: Mapping[int, int]
    in_flight: int
    replicas: Mapping[str, int]
    """Requests on their way, by address of the replica."""


async def read(session: AsyncSession, run_id: UUID, now: datetime) -> Seen | None:
    """None: no server has told anything of late."""
    fresh = (ServiceLoadRow.run_id == run_id, ServiceLoadRow.written_at > now - FRESH_FOR)
    rows = list(await session.scalars(select(ServiceLoadRow).where(*fresh)))
    if not rows:
        return None
    replicas: dict[str, int] = {}
    for row in rows:
        for address, count in json.loads(row.replicas).items():
            replicas[address] = replicas.get(address, 0) + count
    return Seen(
        since=max(row.since for row in rows),
        requests={window: sum(getattr(row, f"requests_{window}") for row in rows) for window in WINDOWS},
        in_flight=sum(row.in_flight for row in rows),
        replicas=replicas,
    )


async def write(session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """Columns of `service_loads`; each replaces what its server told before."""
    dialect = session.get_bind().dialect.name
    make = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = make(ServiceLoadRow)
    keys = ("run_id", "server")
    new = {column.name: column for column in statement.excluded if column.name not in keys}
    await session.execute(statement.on_conflict_do_update(index_elements=keys, set_=new), list(rows))


async def list_services(session: AsyncSession) -> list[tuple[UUID, bool]]:
    """Services that are not over, and whether any of their replicas scale."""
    query = select(RunRow.id, RunRow.run_spec).where(RUN_IS_ACTIVE, RunRow.service_spec.is_not(None))
    return [(id, '"scaling":{' in run_spec) for id, run_spec in await session.execute(query)]


async def purge(session: AsyncSession, now: datetime) -> None:
    """Drops what servers that are gone have left."""
    await session.execute(delete(ServiceLoadRow).where(ServiceLoadRow.written_at < now - KEPT_FOR))

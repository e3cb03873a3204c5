"""What the servers have seen of the requests to services, in rows that each writes for itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.proxy.stats import WINDOWS, Counts
from dstack.server.db.tables import ProjectRow, RunRow, ServiceLoadRow
from dstack.server.db.tables.runs import RUN_IS_ACTIVE

FRESH_FOR = timedelta(seconds=20)
"""A row that is older is of a server that is gone."""
KEPT_FOR = timedelta(hours=1)


@dataclass(frozen=True)
class Seen:
    """By all servers together."""

    since: datetime
    """Since when each of them has counted."""
    requests: Mapping[int, int]
    in_flight: int
    replicas: Mapping[str, int]
    """Requests on their way, by address of the replica."""
    windows: Mapping[int, Counts]
    """What happened, by window in seconds."""


async def read(session: AsyncSession, run_id: UUID, now: datetime) -> Seen | None:
    """None: no server has told anything of late."""
    fresh = (ServiceLoadRow.run_id == run_id, ServiceLoadRow.written_at > now - FRESH_FOR)
    rows = list(await session.scalars(select(ServiceLoadRow).where(*fresh)))
    return _together(rows) if rows else None


async def read_all(session: AsyncSession, run_ids: Sequence[UUID], now: datetime) -> dict[UUID, Seen]:
    """By run; those of which no server has told anything of late are missing."""
    fresh = (ServiceLoadRow.run_id.in_(run_ids), ServiceLoadRow.written_at > now - FRESH_FOR)
    by_run: dict[UUID, list[ServiceLoadRow]] = {}
    for row in await session.scalars(select(ServiceLoadRow).where(*fresh)):
        by_run.setdefault(row.run_id, []).append(row)
    return {run_id: _together(rows) for run_id, rows in by_run.items()}


def _together(rows: Sequence[ServiceLoadRow]) -> Seen:
    replicas: dict[str, int] = {}
    for row in rows:
        for address, count in json.loads(row.replicas).items():
            replicas[address] = replicas.get(address, 0) + count
    windows = {window: Counts() for window in WINDOWS}
    for row in rows:
        for window, counts in json.loads(row.windows).items():
            windows[int(window)].add(Counts.load(counts))
    return Seen(
        since=max(row.since for row in rows),
        requests={window: sum(getattr(row, f"requests_{window}") for row in rows) for window in WINDOWS},
        in_flight=sum(row.in_flight for row in rows),
        replicas=replicas,
        windows=windows,
    )


async def write(session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """Columns of `service_loads`; each replaces what its server told before."""
    dialect = session.get_bind().dialect.name
    make = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = make(ServiceLoadRow)
    keys = ("run_id", "server")
    new = {column.name: column for column in statement.excluded if column.name not in keys}
    await session.execute(statement.on_conflict_do_update(index_elements=keys, set_=new), list(rows))


class ActiveService(NamedTuple):
    """One that is not over. `scales`: some of its replicas do."""

    id: UUID
    project: str
    run: str
    scales: bool


async def list_services(session: AsyncSession) -> list[ActiveService]:
    columns = (RunRow.id, ProjectRow.name, RunRow.run_name, RunRow.run_spec)
    query = select(*columns).join(ProjectRow, ProjectRow.id == RunRow.project_id)
    query = query.where(RUN_IS_ACTIVE, RunRow.service_spec.is_not(None))
    return [
        ActiveService(id, project, run, '"scaling":{' in run_spec)
        for id, project, run, run_spec in await session.execute(query)
    ]


async def purge(session: AsyncSession, now: datetime) -> None:
    """Drops what servers that are gone have left."""
    await session.execute(delete(ServiceLoadRow).where(ServiceLoadRow.written_at < now - KEPT_FOR))

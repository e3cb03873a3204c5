"""What metrics ask the database never looks at runs and jobs that are over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.engine import Database
from dstack.server.db.queries import alive, metrics


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/sqlite.db")
    yield database
    await database.close()


ASKED: list[Callable[[AsyncSession], Awaitable[Any]]] = [
    alive.count_runs,
    alive.count_jobs,
    alive.list_instances,
    alive.list_running_jobs,
    metrics.list_running_jobs,
    metrics.list_newest_points,
    lambda session: metrics.purge(session, live_before_micro=1, finished_before_micro=1),
]


@pytest.mark.parametrize("ask", ASKED, ids=lambda ask: ask.__name__)
async def test_no_table_is_walked_as_a_whole(
    sqlite: Database, ask: Callable[[AsyncSession], Awaitable[Any]]
) -> None:
    asked: list[tuple[str, Any]] = []
    async with sqlite.transaction() as session:
        connection = await session.connection()
        assert connection.sync_connection is not None
        event.listen(
            connection.sync_connection,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, parameters, *_: asked.append((statement, parameters)),
        )
        await ask(session)
        plans: list[str] = []
        for statement, parameters in list(asked):
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans += [str(row["detail"]) for row in rows.mappings()]
    assert plans
    grown = ("runs", "jobs", "instances", "job_metrics_points")
    walked = [step for step in plans if step.startswith("SCAN") and step.split()[1] in grown]
    of_active = ("ix_runs_active", "ix_runs_project_active")  # which hold nothing else
    assert [step for step in walked if not any(index in step for index in of_active)] == []

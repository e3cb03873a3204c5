"""Pages of runs and events stay quick however many there are: by the indexes that SQLite says it walks."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.engine import Database
from dstack.server.db.queries import events, runs
from dstack.server.db.queries.events import EventFilter
from dstack.server.db.queries.runs import RunFilter

ONE, OTHER = uuid.uuid4(), uuid.uuid4()


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/server.sqlite")
    yield database
    await database.close()


async def plan_of(database: Database, ask: Callable[[AsyncSession], Awaitable[Any]]) -> list[str]:
    """The steps of the first query that `ask` makes."""
    asked: list[tuple[str, Any]] = []
    async with database.session() as session:
        connection = await session.connection()
        assert connection.sync_connection is not None
        event.listen(
            connection.sync_connection,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, parameters, *_: asked.append((statement, parameters)),
        )
        await ask(session)
        statement, parameters = asked[0]
        rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return [str(row["detail"]) for row in rows.mappings()]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (RunFilter([ONE]), "ix_runs_project_submitted"),
        (RunFilter(), "ix_runs_submitted"),
        (RunFilter([ONE], only_active=True), "ix_runs_project_active"),
        (RunFilter(only_active=True), "ix_runs_active"),
    ],
)
async def test_a_page_of_runs_is_a_walk_over_an_index_in_its_order(
    sqlite: Database, wanted: RunFilter, index: str
) -> None:
    plan = await plan_of(sqlite, lambda session: runs.list_heads(session, wanted))
    assert any(f"runs USING INDEX {index} " in f"{step} " for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


@pytest.mark.parametrize("projects", [None, [], [ONE], [ONE, OTHER]])
@pytest.mark.parametrize("user", [None, "somebody"])
async def test_every_page_of_active_runs_can_take_their_index(
    sqlite: Database, projects: list[uuid.UUID] | None, user: str | None
) -> None:
    async with sqlite.session() as session:
        wanted = RunFilter(projects, only_active=True, user_name=user, repo_id=ONE)
        assert await runs.list_heads(session, wanted) == []
        assert await runs.list_page(session, wanted) == []


@pytest.mark.parametrize(
    "wanted",
    [
        EventFilter(),
        EventFilter(visible_projects=[ONE], visible_user=OTHER),
        EventFilter(visible_projects=[ONE, OTHER], visible_user=ONE),
        EventFilter(within_projects=[ONE]),
        EventFilter(include_target_types=["job", "run"]),
        EventFilter(within_projects=[ONE], include_target_types=["job"], visible_projects=[OTHER]),
    ],
)
async def test_a_page_of_all_events_is_a_walk_from_the_newest(sqlite: Database, wanted: EventFilter) -> None:
    plan = await plan_of(sqlite, lambda session: events.list_page(session, wanted))
    assert plan[0] == "SCAN events USING INDEX ix_events_recorded"
    targets = [step for step in plan if "event_targets" in step]
    assert all("ix_event_targets_event (event_id=?" in step for step in targets), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


@pytest.mark.parametrize(
    "wanted",
    [
        EventFilter(within_runs=[ONE], visible_projects=[OTHER]),
        EventFilter(within_fleets=[ONE]),
        EventFilter(targets={"run": [ONE]}, within_projects=[OTHER]),
    ],
)
async def test_the_events_of_a_few_things_are_looked_up_by_these(sqlite: Database, wanted: EventFilter) -> None:
    plan = await plan_of(sqlite, lambda session: events.list_page(session, wanted))
    assert not any(step.startswith(("SCAN events", "SCAN event_targets", "SCAN jobs")) for step in plan), plan
    assert any("ix_event_targets_entity (entity_type=? AND entity_id=?" in step for step in plan), plan

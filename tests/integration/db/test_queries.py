"""What the queries find, page and order; and that listing stays flat, by the plan that the engine chooses."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from tests.fixtures.rows import EPOCH, job_row, project_row, run_row, user_row

from dstack.server import events
from dstack.server.db.engine import Database
from dstack.server.db.queries import events as event_queries
from dstack.server.db.queries import runs
from dstack.server.db.queries.events import EventFilter
from dstack.server.db.queries.runs import RunFilter
from dstack.server.db.tables import MemberRow, ProjectRow, RunRow, UserRow
from dstack.server.events import Target


@pytest.fixture
async def owner(database: Database) -> UserRow:
    user = user_row()
    async with database.transaction() as session:
        session.add(user)
    return user


@pytest.fixture
async def project(database: Database, owner: UserRow) -> ProjectRow:
    project = project_row(owner)
    async with database.transaction() as session:
        session.add(project)
        session.add(MemberRow(project_id=project.id, user_id=owner.id, project_role="admin"))
    return project


async def add_runs(database: Database, project: ProjectRow, owner: UserRow, count: int) -> list[RunRow]:
    """Each three share a time; every fifth is active."""
    rows = [
        run_row(
            project,
            owner,
            f"run{number}",
            submitted_at=EPOCH + timedelta(seconds=number // 3),
            status="running" if number % 5 == 0 else "done",
        )
        for number in range(count)
    ]
    async with database.transaction() as session:
        session.add_all(rows)
    return rows


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("only_active", [False, True])
async def test_pages_of_runs_hold_each_run_once_in_order(
    database: Database, project: ProjectRow, owner: UserRow, *, ascending: bool, only_active: bool
) -> None:
    rows = await add_runs(database, project, owner, 40)
    wanted = RunFilter([project.id], only_active=only_active, ascending=ascending, limit=7)
    found = []
    while True:
        async with database.session() as session:
            page = await runs.list_page(session, wanted)
        found += [(run["submitted_at"], run["id"]) for run in page]
        if len(page) < 7:
            break
        wanted = replace(wanted, before=found[-1])
    expected = [(row.submitted_at, row.id) for row in rows if row.status == "running" or not only_active]
    assert found == sorted(expected, reverse=not ascending)


async def test_runs_come_with_names_and_can_be_filtered(
    database: Database, project: ProjectRow, owner: UserRow
) -> None:
    await add_runs(database, project, owner, 3)
    async with database.session() as session:
        page = await runs.list_page(session, RunFilter(user_name="admin", limit=1))
        assert (page[0]["project_name"], page[0]["user_name"], page[0]["fleet_name"]) == ("main", "admin", None)
        assert await runs.list_page(session, RunFilter(user_name="nobody")) == []
        assert await runs.list_page(session, RunFilter(project_ids=[])) == []
        found = await runs.find_by_name(session, project.id, "run1")
        assert found is not None
        assert found["run_name"] == "run1"
        assert await runs.find_by_name(session, project.id, "run99") is None


async def test_the_newest_submissions_of_each_job_come_in_one_query(
    database: Database, project: ProjectRow, owner: UserRow
) -> None:
    first, second = await add_runs(database, project, owner, 2)
    async with database.transaction() as session:
        for run in (first, second):
            for job_num in (0, 1):
                session.add_all(job_row(run, job_num=job_num, submission_num=number) for number in range(4))
    async with database.session() as session:
        all_jobs = await runs.list_jobs(session, [first.id, second.id])
        newest = await runs.list_jobs(session, [first.id, second.id], submissions=2)
        assert await runs.list_jobs(session, []) == []
    assert len(all_jobs) == 16
    assert [job["submission_num"] for job in newest] == [2, 3] * 4


async def test_listing_runs_walks_an_index(database: Database, project: ProjectRow, owner: UserRow) -> None:
    await add_runs(database, project, owner, 5)
    order = "ORDER BY submitted_at DESC, id DESC LIMIT 10"
    active = "runs.status NOT IN ('terminated', 'failed', 'done') AND NOT runs.deleted"
    explain = "EXPLAIN QUERY PLAN" if database.dialect == "sqlite" else "EXPLAIN"
    async with database.transaction() as session:
        if database.dialect == "postgresql":
            await session.execute(text("SET LOCAL enable_seqscan = off"))
        for where, index in [("NOT deleted", "ix_runs_submitted"), (active, "ix_runs_active")]:
            rows = await session.execute(text(f"{explain} SELECT * FROM runs WHERE {where} {order}"))
            plan = " ".join(str(row) for row in rows)
            assert index in plan
            assert "TEMP B-TREE" not in plan


async def test_listing_events_of_a_type_walks_an_index(
    database: Database, project: ProjectRow, owner: UserRow
) -> None:
    async with database.transaction() as session:
        for number in range(3000):
            kind = ("run", "job")[number % 2]
            target = Target(kind, uuid.uuid4(), f"{kind}-{number}", project.id)
            await events.record(session, "changed", actor=None, targets=[target])
    async with database.transaction() as session:
        await session.execute(text("ANALYZE"))
        query = event_queries.page_query(EventFilter(include_target_types=["job"]), database.dialect)
        statement = query.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN QUERY PLAN" if database.dialect == "sqlite" else "EXPLAIN"
        plan = " ".join(str(row) for row in await session.execute(text(f"{explain} {statement}")))
    assert "ix_events_recorded" in plan, plan
    assert "ix_event_targets_event" in plan, plan
    assert "TEMP B-TREE" not in plan, plan


async def test_events_are_filtered_and_paged(database: Database, project: ProjectRow, owner: UserRow) -> None:
    [run] = await add_runs(database, project, owner, 1)
    job = job_row(run)
    stranger = uuid.uuid4()
    async with database.transaction() as session:
        session.add(job)
        await events.record(
            session, "submitted", actor=owner.id, targets=[Target("run", run.id, "run0", project.id)]
        )
        await events.record(session, "running", actor=None, targets=[Target("job", job.id, "j", project.id)])
        await events.record(session, "hired", actor=owner.id, targets=[Target("user", stranger, "stranger")])

    async def messages(**wanted: object) -> list[str]:
        async with database.session() as session:
            found, _ = await event_queries.list_page(
                session,
                EventFilter(ascending=True, **wanted),  # type: ignore[arg-type]
            )
        return [event["message"] for event in found]

    assert await messages() == ["submitted", "running", "hired"]
    assert await messages(targets={"run": [run.id]}) == ["submitted"]
    assert await messages(within_runs=[run.id]) == ["submitted", "running"]
    assert await messages(within_projects=[project.id]) == ["submitted", "running"]
    assert await messages(include_target_types=["user", "job"]) == ["running", "hired"]
    assert await messages(actors=[None]) == ["running"]
    assert await messages(actors=[owner.id, None]) == ["submitted", "running", "hired"]
    assert await messages(visible_projects=[project.id], visible_user=owner.id) == ["submitted", "running"]
    assert await messages(visible_projects=[], visible_user=stranger) == ["hired"]
    async with database.session() as session:
        [first], targets = await event_queries.list_page(session, EventFilter(limit=1, ascending=True))
        assert (first["actor_name"], first["is_actor_deleted"]) == ("admin", False)
        [target] = targets[first["id"]]
        assert (target["entity_name"], target["project_name"]) == ("run0", "main")
    assert await messages(before=(first["recorded_at"], first["id"])) == ["running", "hired"]

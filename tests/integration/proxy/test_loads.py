"""What servers tell one another of the requests to services, on both databases."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from sqlalchemy import select
from tests.fixtures.rows import EPOCH, project_row, run_row, user_row

from dstack.proxy.pool import Pool
from dstack.proxy.stats import ServiceStats
from dstack.server.db.engine import Database
from dstack.server.db.queries import loads
from dstack.server.db.tables import RunRow, ServiceLoadRow
from dstack.server.proxy.loads import LoadReporter

SCALING = json.dumps(
    {"configuration": {"type": "service", "scaling": {"metric": "rps", "target": 1.0}}}, separators=(",", ":")
)


class Clock:
    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self) -> datetime:
        return self.now


async def service(database: Database, **fields: str) -> RunRow:
    user = user_row()
    project = project_row(user)
    values = {"run_spec": SCALING, "service_spec": "{}", "status": "running"} | fields
    run = run_row(project, user, "web", **values)
    async with database.transaction() as session:
        for row in (user, project, run):
            session.add(row)
            await session.flush()
    return run


async def seen(database: Database, run: RunRow, now: datetime) -> loads.Seen | None:
    async with database.session() as session:
        return await loads.read(session, run.id, now)


async def test_b3_counts_of_all_servers_are_added_and_the_run_is_woken(database: Database) -> None:
    run = await service(database)
    clock = Clock()
    heard: list[str] = []
    database.wakeups.listen(heard.append)
    servers = [
        (stats, LoadReporter(database, stats, Pool(timeout=1), clock))
        for stats in (ServiceStats(), ServiceStats())
    ]
    for count, (stats, reporter) in enumerate(servers, 1):
        for _ in range(count):
            stats.finish(str(run.id), stats.start(str(run.id)))
        await reporter.report()
    servers[1][0].start(str(run.id))
    servers[1][1].wake(str(run.id))
    await servers[1][1].report()
    known = await seen(database, run, clock.now)
    assert known is not None
    assert (known.requests, known.in_flight) == ({30: 3, 60: 3, 300: 3}, 1)
    assert sum(known.windows[300].latency.values()) == 3
    assert heard.count(f"run:{run.id}") == 3

    clock.now += timedelta(seconds=1)
    await servers[0][1].report()
    assert heard.count(f"run:{run.id}") == 3, "nothing has changed"
    servers[0][1].wake(str(run.id))
    await servers[0][1].report()
    assert heard.count(f"run:{run.id}") == 4

    clock.now += timedelta(seconds=20)
    await servers[0][1].report()
    known = await seen(database, run, clock.now)
    assert known is not None
    assert known.in_flight == 0, "a server that tells nothing any more is gone"
    clock.now += timedelta(hours=2)
    await servers[1][1].report()
    async with database.session() as session:
        assert len(list(await session.scalars(select(ServiceLoadRow)))) == 1


async def test_a_service_without_requests_is_told_only_where_it_scales(database: Database) -> None:
    run = await service(database)
    clock = Clock()
    await LoadReporter(database, ServiceStats(), Pool(timeout=1), clock).report()
    known = await seen(database, run, clock.now)
    assert known is not None
    assert (known.in_flight, known.since) == (0, EPOCH)


async def test_services_that_have_ended_are_forgotten(database: Database) -> None:
    run = await service(database, status="terminated")
    clock = Clock()
    stats = ServiceStats()
    stats.finish(str(run.id), stats.start(str(run.id)))
    await LoadReporter(database, stats, Pool(timeout=1), clock).report()
    assert stats.services() == []
    assert await seen(database, run, clock.now) is None

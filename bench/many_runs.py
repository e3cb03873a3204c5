"""Whether lists stay as quick as they are when the database has a hundred times as much in it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import statistics
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Table, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from tests.e2e.harness import TOKEN, ServerProcess, wait_for
from tests.fixtures.postgres import find_binaries, postgres_server

from bench.measure import Benchmark, Result, dstack, process_of, running_server, seconds_of
from dstack.server.db.engine import Database
from dstack.server.db.tables import EventRow, EventTargetRow, JobRow, RunRow

FEW, MANY = (100, 100), (10_000, 1_000)
"""Finished and active runs. The active ones are the oldest: the worst case for a look at those alone."""
ROUNDS = 31
Row = dict[str, Any]
Call = Callable[[], object]


def many_runs(folder: Path) -> list[Result]:
    """`dstack ps`, `runs/list` and `events/list` with 11,000 runs beside 200, on SQLite"""
    return _measure(folder, "SQLite", [f"sqlite+aiosqlite:///{folder}/{name}.sqlite" for name in ("few", "many")])


def many_runs_postgresql(folder: Path) -> list[Result]:
    """the same on PostgreSQL"""
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError("PostgreSQL is not installed")
    with postgres_server(binaries) as postgres:
        return _measure(folder, "PostgreSQL", [postgres.url(postgres.create()) for _ in range(2)])


def _measure(folder: Path, engine: str, urls: list[str]) -> list[Result]:
    """Both servers run; each call is made of one and the other in turn."""
    with contextlib.ExitStack() as servers:
        few, many = (
            _Filled(folder / str(counts[0]), url, counts, servers)
            for url, counts in zip(urls, (FEW, MANY), strict=True)
        )
        return [_compare(f"{what}, {engine}", few.calls[what], many.calls[what]) for what in many.calls]


def _compare(what: str, few: Call, many: Call) -> Result:
    few()
    many()
    rounds = 9 if what.startswith("dstack") else ROUNDS
    times = [(seconds_of(few), seconds_of(many)) for _ in range(rounds)]
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    told = f"{after / before:.2f} ({before * 1000:.3g} ms, {after * 1000:.3g} ms)"
    return Result(what, "<= 1.5 x of few", told, "ok" if after <= 1.5 * before else "over")


class _Filled:
    """A server whose database has so many runs, and the calls to make."""

    def __init__(
        self, folder: Path, database_url: str, counts: tuple[int, int], servers: contextlib.ExitStack
    ) -> None:
        folder.mkdir()
        self._folder = folder
        with running_server(folder, DSTACK_DATABASE_URL=database_url) as server:
            server.submit("template", ["echo hello"], resources={"cpu": "1..", "memory": "0..", "disk": "0.."})
            server.wait_run("template", "done")
            server.submit("scheduled", ["echo hello"], schedule={"cron": "0 0 1 1 *"})
            self._member = _member_token(server)
        asyncio.run(_fill(database_url, *counts))
        self._server = servers.enter_context(running_server(folder, DSTACK_DATABASE_URL=database_url))
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        self._connection = servers.enter_context(contextlib.closing(connection))
        _settle(self._server)
        self.calls = self._calls()

    def _calls(self) -> dict[str, Call]:
        run = self._server.post("/api/runs/list", {"project_name": "main", "limit": 1})[0]
        project_id = self._server.post("/api/projects/main/get")["project_id"]
        name = {"run_name": run["run_spec"]["run_name"]}
        return {
            "runs/list, active": self._runs(TOKEN, project_name="main", only_active=True),
            "runs/list, all": self._runs(TOKEN, project_name="main"),
            "runs/list, all projects, member": self._runs(self._member),
            "runs/list, all projects, active, member": self._runs(self._member, only_active=True),
            "runs/get by name": self._poster("/api/project/main/runs/get", name, TOKEN),
            "events/list": self._events(TOKEN),
            "events/list, member": self._events(self._member),
            "events/list, within a project": self._events(TOKEN, within_projects=[project_id]),
            "events/list, within a run, member": self._events(self._member, within_runs=[run["id"]]),
            "events/list, of jobs": self._events(TOKEN, include_target_types=["job"]),
            "dstack ps": lambda: dstack(self._folder, "ps"),
        }

    def _runs(self, token: str, **body: object) -> Call:
        return self._poster("/api/runs/list", {"limit": 100, "job_submissions_limit": 1, **body}, token)

    def _events(self, token: str, **body: object) -> Call:
        return self._poster("/api/events/list", {"limit": 100, **body}, token)

    def _poster(self, path: str, body: Row, token: str) -> Call:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        text = json.dumps(body)

        def call() -> None:
            self._connection.request("POST", path, text, headers)
            answer = self._connection.getresponse()
            data = answer.read()
            if answer.status != 200 or len(data) < 100:
                raise RuntimeError(f"{path} {text} answered {answer.status}: {data[:200]!r}")

        return call


def _settle(server: ServerProcess) -> None:
    """Returns once the server has looked at all that is unfinished, as it does when it starts."""
    process = process_of(server)
    process.cpu_percent()
    wait_for("a server at rest", lambda: process.cpu_percent(1.0) < 10, 60)


def _member_token(server: ServerProcess) -> str:
    """Of somebody who sees this project alone."""
    server.post("/api/users/create", {"username": "member", "global_role": "user"})
    member = {"username": "member", "project_role": "user"}
    server.post("/api/projects/main/add_members", {"members": [member]})
    return str(server.post("/api/users/get_user", {"username": "member"})["creds"]["token"])


async def _fill(url: str, finished: int, active: int) -> None:
    """Copies of a finished run with its job and events; and of one that waits for its time and has run before."""
    database = await Database.open(url)
    try:
        async with database.transaction() as session:
            templates = await _templates(session)
            now = datetime.now(timezone.utc)
            for start in range(0, finished + active, 500):
                numbers = range(start, min(start + 500, finished + active))
                copies = [
                    _copy(templates, number, is_active=number < active, at=now + _ages(number, finished + active))
                    for number in numbers
                ]
                for table in (RunRow, JobRow, EventRow, EventTargetRow):
                    rows = [row for copy in copies for row in copy[table.__tablename__]]
                    await session.execute(insert(cast(Table, table.__table__)), rows)
        async with database.transaction() as session:
            if database.dialect == "postgresql":
                await session.execute(text("ANALYZE"))  # as it does by itself, some time after so many new rows
    finally:
        await database.close()


def _ages(number: int, total: int) -> timedelta:
    return timedelta(minutes=number - total)


async def _templates(session: AsyncSession) -> dict[str, list[Row]]:
    async def rows(table: Any, *where: Any) -> list[Row]:
        return [dict(row) for row in (await session.execute(select(*table.__table__.c).where(*where))).mappings()]

    [run] = await rows(RunRow, RunRow.run_name == "template")
    [scheduled] = await rows(RunRow, RunRow.run_name == "scheduled")
    [job] = await rows(JobRow, JobRow.run_id == run["id"])
    targets = await rows(EventTargetRow, EventTargetRow.entity_id.in_([run["id"], job["id"]]))
    events = await rows(EventRow, EventRow.id.in_([target["event_id"] for target in targets]))
    return {"runs": [run], "scheduled": [scheduled], "jobs": [job], "events": events, "event_targets": targets}


def _copy(templates: dict[str, list[Row]], number: int, *, is_active: bool, at: datetime) -> dict[str, list[Row]]:
    """Rows of one run under new ids."""
    new: dict[uuid.UUID, uuid.UUID] = {}

    def renewed(row: Row, *names: str, **values: Any) -> Row:
        ids = {name: new.setdefault(row[name], uuid.uuid4()) for name in names}
        return {**row, **ids, **values}

    [template], [scheduled], [job] = templates["runs"], templates["scheduled"], templates["jobs"]
    name = f"run-{number}"
    run = renewed(template, "id", run_name=name, submitted_at=at)
    if is_active:
        kept = ("status", "run_spec", "next_triggered_at", "wake_at", "finished_at", "termination_reason")
        run |= {column: scheduled[column] for column in kept}
    run["run_spec"] = run["run_spec"].replace("scheduled" if is_active else "template", name)
    return {
        "runs": [run],
        "jobs": [renewed(job, "id", run_id=run["id"], job_name=f"{name}-0-0", submitted_at=at)],
        "events": [renewed(event, "id", recorded_at=at) for event in templates["events"]],
        "event_targets": [
            renewed(target, "event_id", "entity_id", id=uuid.uuid4()) for target in templates["event_targets"]
        ],
    }


BENCHMARKS: list[Benchmark] = [many_runs, many_runs_postgresql]

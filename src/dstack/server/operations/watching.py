"""Following runs and logs as they change: driven by wake-ups, never by polling (better B13)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from dstack.core.errors import ResourceNotExists
from dstack.core.jobs import JobStatus
from dstack.core.runs import RunStatus
from dstack.server.db.queries import runs as queries
from dstack.server.db.tables import JobRow
from dstack.server.operations import run_answers
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.run_answers import Document, dump
from dstack.server.stores.logs.base import MAX_LIMIT, LogKey, LogPage, LogQuery
from dstack.server.wakeups import RESET_TOPICS

PING_SECONDS = 15.0
PING = dump({"type": "ping"})
END = dump({"type": "end"})


class _Changes:
    """Which runs of a project changed since last asked. A context manager."""

    def __init__(self, ctx: Context, project_id: UUID) -> None:
        self._wakeups = ctx.database.wakeups
        self._stopping = ctx.stopping
        self._prefix = f"changed:run:{project_id}:"
        self._ids: dict[UUID, None] = {}
        self.missed = False
        """Wake-ups may have been lost; everything has to be looked at."""
        self._any = asyncio.Event()

    def __enter__(self) -> _Changes:
        self._end = self._wakeups.listen(self._on_wakeup)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _on_wakeup(self, name: str) -> None:
        if name.startswith(self._prefix):
            self._ids[UUID(name[len(self._prefix) :])] = None
            self._any.set()
        elif name == RESET_TOPICS[-1]:
            self.missed = True
            self._any.set()

    def wake(self) -> None:
        """As if something had changed."""
        self._any.set()

    async def wait(self, seconds: float) -> bool:
        """False when nothing changed for so long, or the server is about to end."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        changing = asyncio.ensure_future(self._any.wait())
        try:
            await asyncio.wait((stopping, changing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, changing):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        return self._any.is_set()

    def take(self) -> list[UUID]:
        self._any.clear()
        ids, self._ids = list(self._ids), {}
        return ids


async def watch_runs(ctx: Context, at: InProject, run_name: str | None) -> AsyncIterator[bytes]:
    """Runs at once and at each change. With a name: until that run has finished; raises ResourceNotExists."""
    told: dict[UUID, bytes] = {}
    with _Changes(ctx, at.project.id) as changes:
        documents = await _first(ctx, at, run_name)
        only = documents[0]["id"] if run_name is not None else None
        if not documents:
            yield PING
        while True:
            for line, document in _news(told, documents):
                yield line
                if document["id"] == only and RunStatus(document["status"]).is_finished():
                    return
            while not await changes.wait(PING_SECONDS):
                if ctx.stopping.is_set():
                    return
                yield PING
            ids = changes.take()
            if changes.missed:
                changes.missed, ids = False, list({**dict.fromkeys(told), **dict.fromkeys(ids)})
            documents = await _load(ctx, at, [id_ for id_ in ids if only in (None, id_)])


def _news(told: dict[UUID, bytes], documents: Iterable[Document]) -> Iterable[tuple[bytes, Document]]:
    """Lines for the runs that look different from what was told last."""
    for document in documents:
        line = dump({"type": "run", "run": document})
        if told.get(document["id"]) != line:
            told[document["id"]] = line
            yield line, document


async def _first(ctx: Context, at: InProject, run_name: str | None) -> list[Document]:
    ssh = ctx.ssh
    async with ctx.database.session() as session:
        if run_name is None:
            wanted = queries.RunFilter(project_ids=[at.project.id], only_active=True, limit=1000)
            return await run_answers.load(session, await queries.list_page(session, wanted), ssh=ssh)
        row = await queries.find_by_name(session, at.project.id, run_name)
        if row is None:
            raise ResourceNotExists(f"Run {run_name!r} does not exist")
        return await run_answers.load(session, [row], ssh=ssh)


async def _load(ctx: Context, at: InProject, ids: Iterable[UUID]) -> list[Document]:
    async with ctx.database.session() as session:
        found = [await queries.find_by_id(session, at.project.id, run_id) for run_id in ids]
        rows = [row for row in found if row is not None]
        return await run_answers.load(session, rows, ssh=ctx.ssh)


async def follow_logs(
    ctx: Context,
    at: InProject,
    run_name: str,
    submission_id: UUID,
    *,
    start_time: datetime | None,
    next_token: str | None,
) -> AsyncIterator[bytes]:
    """Lines of a submission as they are stored; ends once the job has finished and everything was told."""
    key = LogKey(at.project.name, run_name, submission_id)
    async for page in log_pages(ctx, at.project.id, key, start_time=start_time, next_token=next_token):
        for event in page.logs:
            yield event.model_dump_json().encode()
        if not page.logs:
            yield PING
    if not ctx.stopping.is_set():
        yield END


async def log_pages(
    ctx: Context,
    project_id: UUID,
    key: LogKey,
    *,
    start_time: datetime | None = None,
    next_token: str | None = None,
) -> AsyncIterator[LogPage]:
    """What is stored, and then each addition, until the job has finished and everything was given.

    An empty page comes first when there is nothing yet, and after each while in which nothing came. Ends also when
    the server is about to end.
    """
    token, is_first = next_token, True
    with _Changes(ctx, project_id) as changes, ctx.logs.listen(key, changes.wake):
        while True:
            changes.take()
            has_ended = await _has_ended(ctx, project_id, key)  # looked at first: what is stored by then is given
            page = await ctx.logs.poll(key, LogQuery(start_time, next_token=token, limit=MAX_LIMIT))
            token = page.resume_token or token
            if page.logs or is_first:
                yield page
            is_first = False
            if page.next_token is not None:
                continue
            if has_ended:
                return
            while not await changes.wait(PING_SECONDS):
                if ctx.stopping.is_set():
                    return
                yield LogPage(logs=[])
                break  # another replica may have stored something


async def _has_ended(ctx: Context, project_id: UUID, key: LogKey) -> bool:
    """Also for one that does not exist: there is nothing to wait for."""
    async with ctx.database.session() as session:
        row = await session.get(JobRow, key.job_submission_id)
    return row is None or row.project_id != project_id or JobStatus(row.status).is_finished()

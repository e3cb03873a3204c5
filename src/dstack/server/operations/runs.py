"""Runs: what people ask to be run, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import orjson
from sqlalchemy import select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import Forbidden, InvalidRequest, ProjectNotFound, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.runs import Run, RunStatus, RunTerminationReason
from dstack.core.schemas.runs import GetRunRequest, ListRunsRequest
from dstack.server import events
from dstack.server.access import Caller
from dstack.server.db.engine import wake
from dstack.server.db.queries import runs as queries
from dstack.server.db.tables import JobRow, RunRow
from dstack.server.operations import run_answers
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.run_answers import Document
from dstack.server.operations.visibility import project_ids_of


async def list_runs(ctx: Context, caller: Caller, page: ListRunsRequest) -> list[orjson.Fragment]:
    """A page of the runs of one project, or of all projects of the caller."""
    async with ctx.database.session() as session:
        project_ids = await _project_ids(ctx, session, caller, page.project_name)
        repo_id = None
        if page.repo_id is not None:
            if page.project_name is None or project_ids is None:
                raise InvalidRequest(
                    "repo_id needs project_name: ids of repositories are unique in a project only"
                )
            repo = await queries.find_repo(session, project_ids[0], page.repo_id)
            if repo is None:
                return []
            repo_id = repo.id
        wanted = queries.RunFilter(
            project_ids=project_ids,
            repo_id=repo_id,
            user_name=page.username,
            only_active=page.only_active,
            before=None if page.prev_submitted_at is None else (page.prev_submitted_at, page.prev_run_id),
            ascending=page.ascending,
            limit=page.limit,
        )
        heads = await queries.list_heads(session, wanted)
        view = (page.include_jobs, page.job_submissions_limit)
        return await ctx.finished_runs.load(session, heads, view, ssh=ctx.ssh)


async def _project_ids(
    ctx: Context, session: AsyncSession, caller: Caller, project_name: str | None
) -> list[UUID] | None:
    """None: all projects."""
    if project_name is not None:
        project = await ctx.access.find_project(project_name)
        if project is None:
            raise ProjectNotFound(f"Project {project_name!r} does not exist")
        if caller.role_in(project) is None:
            raise Forbidden(f"Access denied: you are not a member of project {project_name!r}")
        return [project.id]
    mine = project_ids_of(caller)
    return None if mine is None else list(await session.scalars(mine))


async def get_run(ctx: Context, at: InProject, wanted: GetRunRequest) -> Document:
    """By name (the newest one that is not deleted) or by id."""
    async with ctx.database.session() as session:
        row = await _find(session, at, wanted)
        if row is None:
            raise ResourceNotExists(f"Run {wanted.run_name or wanted.id} does not exist")
        return (await run_answers.load(session, [row], ssh=ctx.ssh))[0]


async def _find(session: AsyncSession, at: InProject, wanted: GetRunRequest) -> RowMapping | None:
    if wanted.id is not None:
        return await queries.find_by_id(session, at.project.id, wanted.id)
    if wanted.run_name is None:
        raise InvalidRequest("Give run_name or id")
    return await queries.find_by_name(session, at.project.id, wanted.run_name)


async def find_current(ctx: Context, session: AsyncSession, project_id: UUID, run_name: str | None) -> Run | None:
    """The newest run of that name as a model."""
    row = await queries.find_by_name(session, project_id, run_name) if run_name else None
    if row is None:
        return None
    documents = await run_answers.load(session, [row], ssh=ctx.ssh)
    return Run.model_validate_json(run_answers.dump(documents[0]), extra="ignore")


async def stop_runs(ctx: Context, at: InProject, names: Sequence[str], *, abort: bool) -> None:
    """Asks them to end. Unknown and finished ones are no error; `abort` may follow a stop."""
    reason = RunTerminationReason.ABORTED_BY_USER if abort else RunTerminationReason.STOPPED_BY_USER
    async with ctx.database.transaction() as session:
        for row in await _rows(session, at, names):
            if RunStatus(row.status).is_finished() or row.stop_requested in (
                reason.value,
                RunTerminationReason.ABORTED_BY_USER.value,
            ):
                continue
            row.stop_requested = reason.value
            row.stop_requested_by = at.caller.user_id
            verb = "aborted" if abort else "stopped"
            await events.record(session, f"Run {verb} by user", actor=at.caller.user_id, targets=[target(row)])
            wake(session, f"run:{row.id}", changed(row.project_id, row.id))


async def delete_runs(ctx: Context, at: InProject, names: Sequence[str]) -> None:
    """Finished ones only, all or none. Unknown names are no error."""
    async with ctx.database.transaction() as session:
        rows = await _rows(session, at, names)
        active = sorted({row.run_name for row in rows if not RunStatus(row.status).is_finished()})
        if active:
            raise InvalidRequest(f"Cannot delete active runs: {', '.join(active)}; stop them first")
        for row in rows:
            row.deleted = True
            await events.record(session, "Run deleted", actor=at.caller.user_id, targets=[target(row)])
            wake(session, changed(row.project_id, row.id))


async def _rows(session: AsyncSession, at: InProject, names: Sequence[str]) -> list[RunRow]:
    statement = select(RunRow).where(
        RunRow.project_id == at.project.id, RunRow.run_name.in_(names), RunRow.deleted.is_(False)
    )
    return list(await session.scalars(statement.with_for_update().order_by(RunRow.submitted_at)))


async def update_priority(session: AsyncSession, run: RunRow, priority: int) -> None:
    """Of the run and of its jobs, which look at their new settings."""
    run.priority = priority
    unfinished = (JobRow.run_id == run.id, JobRow.finished_at.is_(None))
    await session.execute(update(JobRow).where(*unfinished).values(priority=priority))
    wake(session, *(f"job:{id}" for id in await session.scalars(select(JobRow.id).where(*unfinished))))


def target(row: RunRow) -> events.Target:
    """For events."""
    return events.Target(EventTargetType.RUN.value, row.id, row.run_name, row.project_id)


def changed(project_id: UUID, run_id: UUID) -> str:
    """The wake-up for who watches runs."""
    return f"changed:run:{project_id}:{run_id}"

"""Queries about runs and jobs. JSON columns come as text, so that answers are put together without parsing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Select, and_, bindparam, func, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import Unpack

from dstack.server.db.tables import FleetRow, JobRow, ProjectRow, RepoRow, RunRow, UserRow
from dstack.server.db.tables.runs import RUN_IS_ACTIVE


@dataclass(frozen=True)
class RunFilter:
    """Which runs to list. `project_ids` None: of all projects (for global admins)."""

    project_ids: Sequence[UUID] | None = None
    repo_id: UUID | None = None
    user_name: str | None = None
    only_active: bool = False
    before: tuple[datetime, UUID | None] | None = None
    """The last one of the page before, by (submitted_at, id)."""
    ascending: bool = False
    limit: int = 100


class RunHead(NamedTuple):
    """Of a run, what changes whenever anything of it does."""

    id: UUID
    version: int
    status: str
    deleted: bool


_RUN_COLUMNS = (
    *RunRow.__table__.c,
    ProjectRow.name.label("project_name"),
    UserRow.name.label("user_name"),
    FleetRow.name.label("fleet_name"),
)


def _runs() -> Select[Unpack[tuple[Any, ...]]]:
    """Runs with the names that answers show: `project_name`, `user_name`, `fleet_name`."""
    return (
        select(*_RUN_COLUMNS)
        .select_from(RunRow)
        .join(ProjectRow, ProjectRow.id == RunRow.project_id)
        .join(UserRow, UserRow.id == RunRow.user_id)
        .outerjoin(FleetRow, FleetRow.id == RunRow.fleet_id)
    )


async def list_page(session: AsyncSession, wanted: RunFilter) -> Sequence[RowMapping]:
    """One query: the columns of `runs` plus `project_name`, `user_name`, `fleet_name`."""
    return (await session.execute(_page(_runs(), wanted))).mappings().all()


async def list_heads(session: AsyncSession, wanted: RunFilter) -> Sequence[RunHead]:
    """The same page in the same order, as little of it as tells whether an answer at hand is still right."""
    columns = (RunRow.id, RunRow.version, RunRow.status, RunRow.deleted)
    heads = select(*columns).join(UserRow, UserRow.id == RunRow.user_id)
    return [RunHead(*row) for row in await session.execute(_page(heads, wanted))]


async def list_by_ids(session: AsyncSession, ids: Sequence[UUID]) -> Sequence[RowMapping]:
    """Those of the runs that exist, as `list_page` gives them, in no order."""
    return (await session.execute(_runs().where(RunRow.id.in_(ids)))).mappings().all()


def _page(query: Select[Unpack[tuple[Any, ...]]], wanted: RunFilter) -> Select[Unpack[tuple[Any, ...]]]:
    query = query.where(RunRow.deleted.is_(False))
    if wanted.only_active:
        query = query.where(RUN_IS_ACTIVE)
    if wanted.project_ids is not None:
        query = query.where(RunRow.project_id.in_(wanted.project_ids))
    if wanted.repo_id is not None:
        query = query.where(RunRow.repo_id == wanted.repo_id)
    if wanted.user_name is not None:
        query = query.where(UserRow.name == wanted.user_name)
    return _after(query, wanted).limit(wanted.limit)


def _after(query: Select[Unpack[tuple[Any, ...]]], wanted: RunFilter) -> Select[Unpack[tuple[Any, ...]]]:
    at, id_ = RunRow.submitted_at, RunRow.id
    if wanted.before is not None:
        last_at, last_id = wanted.before
        further = at > last_at if wanted.ascending else at < last_at
        if last_id is not None:
            beyond = id_ > last_id if wanted.ascending else id_ < last_id
            further = or_(further, and_(at == last_at, beyond))
        query = query.where(further)
    if wanted.ascending:
        return query.order_by(at.asc(), id_.asc())
    return query.order_by(at.desc(), id_.desc())


async def find_by_name(session: AsyncSession, project_id: UUID, run_name: str) -> RowMapping | None:
    """The newest run of this name that is not deleted."""
    where = (RunRow.project_id == project_id, RunRow.run_name == run_name, RunRow.deleted.is_(False))
    query = _runs().where(*where).order_by(RunRow.submitted_at.desc(), RunRow.id.desc()).limit(1)
    return (await session.execute(query)).mappings().first()


async def find_by_id(session: AsyncSession, project_id: UUID, run_id: UUID) -> RowMapping | None:
    """Deleted runs too."""
    query = _runs().where(RunRow.project_id == project_id, RunRow.id == run_id)
    return (await session.execute(query)).mappings().first()


async def find_repo(session: AsyncSession, project_id: UUID, name: str) -> RepoRow | None:
    return await session.scalar(select(RepoRow).where(RepoRow.project_id == project_id, RepoRow.name == name))


async def list_jobs(
    session: AsyncSession, run_ids: Sequence[UUID], *, submissions: int | None = None
) -> Sequence[RowMapping]:
    """What answers show of the jobs of all these runs, in one query, ordered by run, replica, job, submission.

    `submissions`: only the newest so many of each job.
    """
    if not run_ids:
        return []
    if submissions is None:
        found = await session.execute(_ALL_JOBS, {"run_ids": run_ids})
    else:
        found = await session.execute(_NEWEST_JOBS, {"run_ids": run_ids, "submissions": submissions})
    return found.mappings().all()


_JOB_COLUMNS = tuple(
    JobRow.__table__.c[name]
    for name in (
        "id", "run_id", "replica_num", "job_num", "submission_num", "deployment_num", "status",
        "submitted_at", "last_processed_at", "provisioned_at", "finished_at",
        "termination_reason", "termination_reason_message", "exit_status", "capacity_error", "logs_error",
        "last_active_at", "job_spec", "provisioning_data", "runtime_data", "probe_streaks", "task_state",
    )
)  # fmt: skip
"""What answers show of a submission."""
_OF_THE_RUNS = JobRow.run_id.in_(bindparam("run_ids", expanding=True))


def _all_jobs() -> Select[Unpack[tuple[Any, ...]]]:
    order = (JobRow.run_id, JobRow.replica_num, JobRow.job_num, JobRow.submission_num)
    return select(*_JOB_COLUMNS).where(_OF_THE_RUNS).order_by(*order)


def _newest_jobs() -> Select[Unpack[tuple[Any, ...]]]:
    same_job = (JobRow.run_id, JobRow.replica_num, JobRow.job_num)
    rank = func.row_number().over(partition_by=same_job, order_by=JobRow.submission_num.desc())
    ranked = select(*_JOB_COLUMNS, rank.label("rank")).where(_OF_THE_RUNS).subquery()
    newest = select(*(ranked.c[column.key] for column in _JOB_COLUMNS))
    newest = newest.where(ranked.c.rank <= bindparam("submissions"))
    return newest.order_by(ranked.c.run_id, ranked.c.replica_num, ranked.c.job_num, ranked.c.submission_num)


_ALL_JOBS, _NEWEST_JOBS = _all_jobs(), _newest_jobs()
"""Built once: putting them together takes as long as running them."""

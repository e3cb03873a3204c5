"""What the watchers of hosts read and write: facts about instances and about the tasks of jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, CursorResult, Select, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.backends import LOCAL
from dstack.core.instances import InstanceStatus
from dstack.core.jobs import JobStatus
from dstack.server.db.engine import wake
from dstack.server.db.tables import InstanceRow, JobRow, ProjectRow, RunRow

FINISHED_JOBS = tuple(status.value for status in JobStatus if status.is_finished())
WATCHED = (InstanceStatus.PROVISIONING, InstanceStatus.IDLE, InstanceStatus.BUSY, InstanceStatus.TERMINATING)


class WatchedInstance(NamedTuple):
    """An instance that has an agent; `address` is the JSON of its `InstanceAddress`."""

    id: UUID
    address: str


class WatchedJob(NamedTuple):
    """What a watcher has to know of a job on its host."""

    id: UUID
    project_name: str
    run_name: str
    instance_id: UUID | None
    status: str
    task_state: str | None
    logs_stored: bool
    project_id: UUID
    run_id: UUID


async def list_watched_instances(session: AsyncSession) -> list[WatchedInstance]:
    """All live instances whose address is known."""
    columns = select(InstanceRow.id, InstanceRow.address)
    rows = await session.execute(columns.where(*_is_watched()))
    return [WatchedInstance(id, address) for id, address in rows if address is not None]


async def renew_claims(session: AsyncSession, owner: str, *, until: datetime) -> None:
    """What `owner` watches stays its own until then."""
    mine = _unlocked(select(InstanceRow.id).where(*_is_watched(), InstanceRow.watcher == owner))
    await session.execute(update(InstanceRow).where(InstanceRow.id.in_(mine)).values(watcher_until=until))


async def claim_instances(
    session: AsyncSession, owner: str, *, now: datetime, until: datetime, limit: int
) -> list[WatchedInstance]:
    """Takes over what nobody watches; answers all that `owner` watches."""
    mine = InstanceRow.watcher == owner
    free = or_(InstanceRow.watcher.is_(None), InstanceRow.watcher_until < now)
    takeable = _unlocked(select(InstanceRow.id).where(*_is_watched(), free).limit(limit))
    await session.execute(
        update(InstanceRow).where(InstanceRow.id.in_(takeable)).values(watcher=owner, watcher_until=until)
    )
    rows = await session.execute(select(InstanceRow.id, InstanceRow.address).where(*_is_watched(), mine))
    return [WatchedInstance(id, address) for id, address in rows if address is not None]


def _unlocked(rows: Select[UUID]) -> Select[UUID]:
    """Those that no other transaction is changing: waiting for several rows in turn invites deadlocks."""
    return rows.with_for_update(skip_locked=True, key_share=True)


async def release_instances(session: AsyncSession, owner: str) -> None:
    """Lets other replicas take over at once."""
    mine = InstanceRow.watcher == owner
    await session.execute(update(InstanceRow).where(mine).values(watcher=None, watcher_until=None))


def _is_watched() -> tuple[ColumnElement[bool], ...]:
    statuses = [status.value for status in WATCHED]
    return (InstanceRow.status.in_(statuses), InstanceRow.address.is_not(None), InstanceRow.deleted.is_(False))


async def get_watched_jobs(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, WatchedJob]:
    """Those of the jobs that exist."""
    rows = await session.execute(_watched_jobs().where(JobRow.id.in_(ids)))
    return {row.id: WatchedJob(*row) for row in rows}


async def list_live_jobs(session: AsyncSession, instance_id: UUID) -> list[WatchedJob]:
    """Jobs on the instance that are not finished."""
    live = JobRow.status.not_in(FINISHED_JOBS)
    rows = await session.execute(_watched_jobs().where(JobRow.instance_id == instance_id, live))
    return [WatchedJob(*row) for row in rows]


def _watched_jobs() -> Any:
    columns = (JobRow.id, ProjectRow.name, RunRow.run_name, JobRow.instance_id, JobRow.status)
    joined = select(*columns, JobRow.task_state, JobRow.logs_stored, JobRow.project_id, JobRow.run_id)
    return joined.join(RunRow, RunRow.id == JobRow.run_id).join(ProjectRow, ProjectRow.id == JobRow.project_id)


async def record_task_states(session: AsyncSession, states: Mapping[UUID, str]) -> None:
    """Facts about tasks; wakes their jobs. Finished jobs are left as they are."""
    for job_id, state in states.items():
        await _update_job(session, job_id, task_state=state)


def tell_of_pulling(session: AsyncSession, job: WatchedJob) -> None:
    """Shows those who watch its run how far the image is: no step of the job would."""
    wake(session, f"changed:run:{job.project_id}:{job.run_id}")


async def record_logs_stored(session: AsyncSession, job_id: UUID) -> None:
    """Every byte of the ended task's log is in the store."""
    await _update_job(session, job_id, logs_stored=True, logs_error=None)


async def record_logs_error(session: AsyncSession, job_id: UUID, error: str | None) -> None:
    """Why the log can't be stored now; None: it can again."""
    await _update_job(session, job_id, logs_error=error)


async def _update_job(session: AsyncSession, job_id: UUID, **values: Any) -> None:
    live = JobRow.status.not_in(FINISHED_JOBS)
    result = await session.execute(update(JobRow).where(JobRow.id == job_id, live).values(**values))
    if isinstance(result, CursorResult) and result.rowcount:
        wake(session, f"job:{job_id}")


async def record_contact(session: AsyncSession, instance_id: UUID, agent_info: str) -> None:
    """The agent answered; wakes the instance, and its jobs if they were out of reach."""
    await session.execute(
        update(InstanceRow)
        .where(InstanceRow.id == instance_id)
        .values(agent_info=agent_info, unreachable_since=None)
    )
    await _mark_jobs(session, instance_id, JobRow.unreachable_since.is_not(None), unreachable_since=None)
    wake(session, f"instance:{instance_id}")


async def find_own_offer(session: AsyncSession, instance_id: UUID) -> str | None:
    """JSON of what the server's own machine has, as on record; None for other instances."""
    own = (InstanceRow.id == instance_id, InstanceRow.backend == LOCAL)
    return await session.scalar(select(InstanceRow.offer).where(*own))


async def record_own_offer(session: AsyncSession, instance_id: UUID, offer: str) -> None:
    """The machine has changed: a driver was installed, an accelerator was added or taken out."""
    await session.execute(update(InstanceRow).where(InstanceRow.id == instance_id).values(offer=offer))


async def record_lost_contact(session: AsyncSession, instance_id: UUID, now: datetime) -> None:
    """The agent does not answer since `now`; unless that is known already, wakes the instance and its jobs."""
    result = await session.execute(
        update(InstanceRow)
        .where(InstanceRow.id == instance_id, InstanceRow.unreachable_since.is_(None))
        .values(unreachable_since=now)
    )
    if isinstance(result, CursorResult) and result.rowcount:
        await _mark_jobs(session, instance_id, JobRow.unreachable_since.is_(None), unreachable_since=now)
        wake(session, f"instance:{instance_id}")


async def _mark_jobs(session: AsyncSession, instance_id: UUID, which: ColumnElement[bool], **values: Any) -> None:
    live = JobRow.status.not_in(FINISHED_JOBS)
    found = select(JobRow.id).where(JobRow.instance_id == instance_id, live, which)
    for job_id in (await session.scalars(found)).all():
        await session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))
        wake(session, f"job:{job_id}")


async def record_activity(session: AsyncSession, job_ids: Collection[UUID], now: datetime) -> None:
    """Somebody is connected to these jobs. Only those that may end for want of it remember."""
    remembers = (JobRow.id.in_(job_ids), JobRow.last_active_at.is_not(None), JobRow.status.not_in(FINISHED_JOBS))
    await session.execute(update(JobRow).where(*remembers).values(last_active_at=now))

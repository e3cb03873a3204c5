"""Replicas with probes, and what these have seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import CursorResult, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.jobs import JobStatus
from dstack.server.db.engine import wake
from dstack.server.db.tables import JobRow


class ProbedJob(NamedTuple):
    """A running replica that has probes, or of which it is not known yet that it listens on its port."""

    id: UUID
    run_id: UUID
    project_id: UUID
    instance_id: UUID | None
    service_address: str
    job_spec: str
    probe_streaks: str | None
    """None: it has no probes."""


async def list_probed(session: AsyncSession) -> list[ProbedJob]:
    columns = (JobRow.id, JobRow.run_id, JobRow.project_id, JobRow.instance_id, JobRow.service_address)
    query = select(*columns, JobRow.job_spec, JobRow.probe_streaks).where(
        JobRow.status == JobStatus.RUNNING.value,
        or_(JobRow.probe_streaks.is_not(None), JobRow.healthy.is_(False)),
        JobRow.service_address.is_not(None),
        JobRow.drain_started_at.is_(None),
    )
    return [ProbedJob._make(row) for row in await session.execute(query)]


async def record_listening(session: AsyncSession, job: ProbedJob) -> None:
    """A replica without probes can be connected to."""
    await session.execute(update(JobRow).where(JobRow.id == job.id).values(healthy=True))
    wake(session, f"job:{job.id}")


async def record_streaks(
    session: AsyncSession, job: ProbedJob, streaks: Sequence[int], *, healthy: bool, is_news: bool
) -> bool:
    """`is_news`: whether all probes are content has changed. False: the replica does not run any more."""
    runs = (JobRow.id == job.id, JobRow.status == JobStatus.RUNNING.value)
    values = {"probe_streaks": json.dumps(list(streaks)), "healthy": healthy}
    result = await session.execute(update(JobRow).where(*runs).values(**values))
    if isinstance(result, CursorResult) and not result.rowcount:
        return False
    if is_news:
        wake(session, f"job:{job.id}", "routes", f"changed:run:{job.project_id}:{job.run_id}")
    return True

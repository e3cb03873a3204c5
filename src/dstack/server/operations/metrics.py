"""What the jobs of a run have used, as series over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import ResourceNotExists
from dstack.core.jobs import JobProvisioningData, JobRuntimeData
from dstack.core.metrics import JobMetrics, Metric
from dstack.server.db.queries import metrics as queries
from dstack.server.db.queries import runs as run_queries
from dstack.server.db.tables import JobMetricsPointRow, JobRow
from dstack.server.operations.context import Context, InProject

MIB = 1024 * 1024
GIB = 1024 * MIB
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class MetricsQuery:
    """Which points of which job: the newest `limit` of those between `after` and `before`, both exclusive."""

    replica_num: int = 0
    job_num: int = 0
    limit: int = 1
    after: datetime | None = None
    before: datetime | None = None
    run_id: UUID | None = None
    """Rather than the newest run of the name."""


@dataclass(frozen=True)
class Capacity:
    """What a job may use."""

    cpus: float
    memory_bytes: int
    gpu_memory_bytes: tuple[int, ...]


async def get_job_metrics(ctx: Context, at: InProject, run_name: str, wanted: MetricsQuery) -> JobMetrics:
    """Series of equal length, newest first; none when nothing was measured.

    Of the newest submission of the job. Raises ResourceNotExists.
    """
    async with ctx.database.session() as session:
        run = await _find_run(session, at.project.id, run_name, wanted.run_id)
        if run is None or run["run_name"] != run_name:
            raise ResourceNotExists(f"Run {run_name} does not exist")
        job = await queries.find_job(session, run["id"], wanted.replica_num, wanted.job_num)
        if job is None:
            raise ResourceNotExists(
                f"Run {run_name} has no replica {wanted.replica_num} with a job {wanted.job_num}"
            )
        before = None if wanted.before is None else _micro(wanted.before)
        points = await queries.list_points(session, job.id, before_micro=before, limit=wanted.limit + 1)
    after = None if wanted.after is None else _micro(wanted.after)
    return JobMetrics(metrics=series(points, capacity_of(job), after))


async def _find_run(
    session: AsyncSession, project_id: UUID, run_name: str, run_id: UUID | None
) -> RowMapping | None:
    if run_id is not None:
        return await run_queries.find_by_id(session, project_id, run_id)
    if "\0" in run_name:  # which PostgreSQL refuses to look for
        return None
    return await run_queries.find_by_name(session, project_id, run_name)


def capacity_of(job: JobRow) -> Capacity | None:
    """The share of the instance that the job was given; None before it was given any."""
    if job.provisioning_data is None:
        return None
    data = JobProvisioningData.model_validate_json(job.provisioning_data, extra="ignore")
    resources = data.instance_type.resources
    cpus, memory, gpus = float(resources.cpus), resources.memory_mib * MIB, resources.gpus
    if job.runtime_data is not None:
        share = JobRuntimeData.model_validate_json(job.runtime_data, extra="ignore")
        cpus = share.cpu or cpus
        memory = int(share.memory * GIB) if share.memory else memory
        gpus = gpus if share.gpu is None else gpus[: share.gpu]
    return Capacity(cpus, memory, tuple(gpu.memory_mib * MIB for gpu in gpus))


def series(
    points: Sequence[JobMetricsPointRow], capacity: Capacity | None, after_micro: int | None = None
) -> list[Metric]:
    """Of points that stand newest first. The oldest only serves to tell how much CPU time the next one took."""
    told = [
        (new, cpu_percent(old, new))
        for new, old in pairwise(points)
        if after_micro is None or new.timestamp_micro > after_micro
    ]
    if not told:
        return []
    rows = [_values(point, percent, capacity) for point, percent in told]
    timestamps = [_EPOCH + timedelta(microseconds=point.timestamp_micro) for point, _ in told]
    names = dict.fromkeys(name for row in rows for name in row)
    return [Metric(name=name, timestamps=timestamps, values=[row.get(name, 0) for row in rows]) for name in names]


def _values(point: JobMetricsPointRow, percent: int, capacity: Capacity | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "cpu_usage_percent": percent,
        "memory_usage_bytes": point.memory_usage_bytes,
        "memory_working_set_bytes": point.memory_working_set_bytes,
    }
    gpus = orjson.loads(point.gpus)
    if capacity is not None:
        values["cpus_detected_num"] = int(capacity.cpus) if capacity.cpus.is_integer() else capacity.cpus
        values["memory_total_bytes"] = capacity.memory_bytes
        if capacity.gpu_memory_bytes:
            values["gpu_memory_total_bytes"] = capacity.gpu_memory_bytes[0]
    values["gpus_detected_num"] = len(gpus)
    for number, gpu in enumerate(gpus):
        values[f"gpu_memory_usage_bytes_gpu{number}"] = gpu["gpu_memory_usage_bytes"]
        values[f"gpu_util_percent_gpu{number}"] = gpu["gpu_util_percent"]
    return values


def cpu_percent(old: JobMetricsPointRow, new: JobMetricsPointRow) -> int:
    """Between two points; 100 is one core all the time."""
    passed, used = new.timestamp_micro - old.timestamp_micro, new.cpu_usage_micro - old.cpu_usage_micro
    return max(0, round(100 * used / passed)) if passed > 0 else 0


def _micro(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (aware - _EPOCH) // timedelta(microseconds=1)

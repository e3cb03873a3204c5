"""The text of `/metrics`: what this process counts, and what the database says of everything that is not over.

Finished runs and jobs are never looked at, so the cost is that of what is alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dstack.core.instances import HealthStatus
from dstack.server import clock
from dstack.server.db.queries import alive
from dstack.server.db.queries import metrics as queries
from dstack.server.db.tables import JobMetricsPointRow
from dstack.server.operations.context import Context
from dstack.server.operations.metrics import Capacity, capacity_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_JOB = ("project", "user", "run", "job", "backend")
_INSTANCE = ("project", "fleet", "instance", "backend")
_HEALTH = tuple(status.value for status in HealthStatus)
"""From the best to the worst."""


@dataclass(frozen=True)
class Family:
    """A metric; a counter's name ends with `_total`."""

    name: str
    help: str
    labels: tuple[str, ...]

    def new(self) -> CounterMetricFamily | GaugeMetricFamily:
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        return kind(self.name, self.help, labels=self.labels)


FAMILIES = (
    Family("dstack_runs", "Runs that are not over.", ("project", "status")),
    Family("dstack_jobs", "Jobs that are not over.", ("project", "status")),
    Family("dstack_instances", "Instances that are not gone.", ("project", "backend", "status")),
    Family("dstack_instance_price_dollars_per_hour", "Price of an instance.", _INSTANCE),
    Family("dstack_instance_duration_seconds_total", "Time since an instance was started.", _INSTANCE),
    Family("dstack_instance_busy_blocks", "Blocks of an instance that jobs hold.", _INSTANCE),
    Family("dstack_instance_blocks", "Blocks that an instance is divided into.", _INSTANCE),
    Family("dstack_job_duration_seconds_total", "Time since a running job was submitted.", _JOB),
    Family("dstack_job_price_dollars_per_hour", "Price of the instance that a running job is on.", _JOB),
    Family("dstack_job_cpu_count", "Cores that a running job may use.", _JOB),
    Family("dstack_job_cpu_time_seconds_total", "CPU time that a running job has used.", _JOB),
    Family("dstack_job_memory_total_bytes", "Memory that a running job may use.", _JOB),
    Family("dstack_job_memory_usage_bytes", "Memory that a running job uses.", _JOB),
    Family("dstack_job_memory_working_set_bytes", "The same without cached files.", _JOB),
    Family("dstack_job_gpu_count", "Accelerators that a running job may use.", _JOB),
    Family("dstack_job_gpu_memory_total_bytes", "Memory of an accelerator of a running job.", (*_JOB, "gpu")),
    Family("dstack_job_gpu_memory_usage_bytes", "Memory in use of an accelerator.", (*_JOB, "gpu")),
    Family("dstack_instance_health", "0 healthy, 1 warning, 2 failure.", _INSTANCE),
    Family("dstack_instance_reachable", "1 while the server is in contact with its agent, else 0.", _INSTANCE),
    Family("dstack_job_gpu_usage_ratio", "Load of an accelerator, 0 to 1.", (*_JOB, "gpu")),
)


class Samples(Collector):
    """Values by family, as the client library wants them."""

    def __init__(self) -> None:
        self._families = {family.name: family.new() for family in FAMILIES}

    def add(self, name: str, labels: Sequence[Any], value: float) -> None:
        self._families[name].add_metric([str(label or "") for label in labels], value)

    def collect(self) -> Iterable[Metric]:
        return self._families.values()


async def render(ctx: Context) -> bytes:
    """The whole text, of this replica's process and of the database."""
    samples, now = Samples(), clock.now()
    async with ctx.database.session() as session:
        for project, status, count in await alive.count_runs(session):
            samples.add("dstack_runs", (project, status), count)
        for project, status, count in await alive.count_jobs(session):
            samples.add("dstack_jobs", (project, status), count)
        instances = await alive.list_instances(session)
        jobs = await alive.list_running_jobs(session)
        points = await queries.list_newest_points(session)
    _add_instances(samples, instances, now)
    for job in jobs:
        _add_job(samples, job, points.get(job.row.id), now)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(samples)
    return generate_latest(REGISTRY) + generate_latest(registry)


def _add_instances(samples: Samples, instances: Sequence[alive.LiveInstance], now: datetime) -> None:
    counts: dict[tuple[str, str | None, str], int] = {}
    for project, fleet, row in instances:
        key = (project, row.backend, row.status)
        counts[key] = counts.get(key, 0) + 1
        labels = (project, fleet, row.name, row.backend)
        samples.add("dstack_instance_price_dollars_per_hour", labels, row.price or 0)
        seconds = (now - (row.started_at or row.created_at)).total_seconds()
        samples.add("dstack_instance_duration_seconds_total", labels, max(0, seconds))
        samples.add("dstack_instance_busy_blocks", labels, row.busy_blocks)
        samples.add("dstack_instance_blocks", labels, row.total_blocks or 1)
        samples.add("dstack_instance_health", labels, _HEALTH.index(row.health))
        samples.add("dstack_instance_reachable", labels, row.unreachable_since is None)
    for key, count in counts.items():
        samples.add("dstack_instances", key, count)


def _add_job(samples: Samples, job: alive.RunningJob, point: JobMetricsPointRow | None, now: datetime) -> None:
    labels = (job.project, job.user, job.run, job.row.job_name, job.backend)
    seconds = (now - job.row.submitted_at).total_seconds()
    samples.add("dstack_job_duration_seconds_total", labels, max(0, seconds))
    samples.add("dstack_job_price_dollars_per_hour", labels, job.price or 0)
    capacity = capacity_of(job.row)
    if capacity is not None:
        _add_capacity(samples, labels, capacity)
    if point is not None:
        _add_usage(samples, labels, point)


def _add_capacity(samples: Samples, labels: tuple[Any, ...], capacity: Capacity) -> None:
    samples.add("dstack_job_cpu_count", labels, capacity.cpus)
    samples.add("dstack_job_memory_total_bytes", labels, capacity.memory_bytes)
    samples.add("dstack_job_gpu_count", labels, len(capacity.gpu_memory_bytes))
    for number, memory in enumerate(capacity.gpu_memory_bytes):
        samples.add("dstack_job_gpu_memory_total_bytes", (*labels, str(number)), memory)


def _add_usage(samples: Samples, labels: tuple[Any, ...], point: JobMetricsPointRow) -> None:
    samples.add("dstack_job_cpu_time_seconds_total", labels, point.cpu_usage_micro / 1e6)
    samples.add("dstack_job_memory_usage_bytes", labels, point.memory_usage_bytes)
    samples.add("dstack_job_memory_working_set_bytes", labels, point.memory_working_set_bytes)
    for number, gpu in enumerate(orjson.loads(point.gpus)):
        of_gpu = (*labels, str(number))
        samples.add("dstack_job_gpu_memory_usage_bytes", of_gpu, gpu["gpu_memory_usage_bytes"])
        samples.add("dstack_job_gpu_usage_ratio", of_gpu, gpu["gpu_util_percent"] / 100)

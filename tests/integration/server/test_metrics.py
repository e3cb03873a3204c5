"""What jobs used, as the REST API and Prometheus tell it; how long it is kept."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select
from tests.fixtures.api import Api, check_answer, serving
from tests.fixtures.rows import fleet_row, instance_row, job_row, run_row

from dstack.core.canonical import dump_json
from dstack.core.instances import BackendType, Disk, Gpu, InstanceType, Resources
from dstack.core.jobs import JobProvisioningData, JobRuntimeData, NetworkMode
from dstack.server.db.engine import Database
from dstack.server.db.tables import JobMetricsPointRow, JobRow, ProjectRow, RunRow, UserRow
from dstack.server.hosts.connections import Agents
from dstack.server.hosts.metrics import MetricsCollector, TimeToLive

START = datetime(2026, 5, 1, tzinfo=timezone.utc)
GIB = 1024**3


def provisioning_data() -> str:
    resources = Resources(
        cpus=4,
        memory_mib=8192,
        gpus=[Gpu(name="A100", memory_mib=81920)] * 2,
        spot=False,
        disk=Disk(size_mib=1024),
    )
    data = JobProvisioningData(
        backend=BackendType.REMOTE,
        instance_type=InstanceType(name="big", resources=resources),
        instance_id="i",
        region="here",
        price=1.5,
        username="root",
        dockerized=False,
    )
    return dump_json(data)


async def add_job(database: Database, *, name: str = "train", status: str = "running", **fields: Any) -> JobRow:
    async with database.session() as session:
        project = (await session.scalars(select(ProjectRow))).one()
        user = (await session.scalars(select(UserRow))).one()
    run = run_row(project, user, name, status=status)
    fleet = fleet_row(project, f"fleet-{name}")
    instance = instance_row(fleet, status="busy", price=1.5, busy_blocks=1)
    job = job_row(run, instance_id=instance.id, status=status, provisioning_data=provisioning_data(), **fields)
    async with database.transaction() as session:
        for row in (run, fleet, instance, job):
            session.add(row)
            await session.flush()
    return job


def micro(seconds: float) -> int:
    return int((START + timedelta(seconds=seconds)).timestamp() * 1e6)


async def add_points(database: Database, job: JobRow, *points: tuple[float, float, int, list[int]]) -> None:
    """(seconds, CPU seconds, memory, load of each accelerator)."""
    async with database.transaction() as session:
        for at, cpu, memory, loads in points:
            gpus = [{"gpu_memory_usage_bytes": GIB, "gpu_util_percent": load} for load in loads]
            session.add(
                JobMetricsPointRow(
                    job_id=job.id,
                    timestamp_micro=micro(at),
                    cpu_usage_micro=int(cpu * 1e6),
                    memory_usage_bytes=memory,
                    memory_working_set_bytes=memory // 2,
                    gpus=json.dumps(gpus),
                )
            )


async def get(api: Api, run: str = "train", **query: Any) -> httpx.Response:
    response = await api.client.get(f"/api/project/main/metrics/job/{run}", params=query)
    check_answer(response)
    return response


async def series(api: Api, **query: Any) -> dict[str, list[Any]]:
    response = await get(api, **query)
    assert response.status_code == 200, response.text
    return {metric["name"]: metric["values"] for metric in response.json()["metrics"]}


async def test_the_series_of_a_job(api: Api) -> None:
    job = await add_job(api.context.database)
    await add_points(
        api.context.database,
        job,
        (0, 0, GIB, [10, 20]),
        (10, 5, 2 * GIB, [30, 40]),
        (20, 25, 3 * GIB, [50, 60]),
    )
    assert await series(api) == {
        "cpu_usage_percent": [200],
        "memory_usage_bytes": [3 * GIB],
        "memory_working_set_bytes": [3 * GIB // 2],
        "cpus_detected_num": [4],
        "memory_total_bytes": [8 * GIB],
        "gpu_memory_total_bytes": [80 * GIB],
        "gpus_detected_num": [2],
        "gpu_memory_usage_bytes_gpu0": [GIB],
        "gpu_util_percent_gpu0": [50],
        "gpu_memory_usage_bytes_gpu1": [GIB],
        "gpu_util_percent_gpu1": [60],
    }
    assert (await series(api, limit=1000))["cpu_usage_percent"] == [200, 50]
    [metric, *_] = (await get(api, limit=1000)).json()["metrics"]
    assert [datetime.fromisoformat(text.replace("Z", "+00:00")) for text in metric["timestamps"]] == [
        START + timedelta(seconds=20),
        START + timedelta(seconds=10),
    ]


async def test_points_between_two_moments(api: Api) -> None:
    job = await add_job(api.context.database)
    await add_points(api.context.database, job, *((at * 10, at, at, []) for at in range(6)))
    after, before = ((START + timedelta(seconds=at)).isoformat() for at in (10, 40))
    assert (await series(api, limit=1000, after=after, before=before))["memory_usage_bytes"] == [3, 2]
    assert (await series(api, limit=1, after=after, before=before))["memory_usage_bytes"] == [3]
    assert await series(api, limit=1000, before=START.isoformat()) == {}


async def test_of_its_part_of_the_instance_and_its_newest_submission(api: Api) -> None:
    share = JobRuntimeData(network_mode=NetworkMode.HOST, gpu=1, cpu=1.5, memory=2.0)
    job = await add_job(api.context.database, submission_num=1, runtime_data=share.model_dump_json())
    old = job_row(RunRow(id=job.run_id, run_name="train", project_id=job.project_id), status="failed")
    async with api.context.database.transaction() as session:
        session.add(old)
    await add_points(api.context.database, old, (0, 0, 7, []), (10, 0, 7, []))
    await add_points(api.context.database, job, (0, 9, 1, [1]), (10, 0, 2, [1]))
    found = await series(api, limit=9)
    assert (found["cpus_detected_num"], found["memory_total_bytes"]) == ([1.5], [2 * GIB])
    assert (found["memory_usage_bytes"], found["cpu_usage_percent"]) == ([2], [0])


async def test_nothing_measured_and_nothing_there(api: Api) -> None:
    job = await add_job(api.context.database)
    assert (await get(api)).json() == {"metrics": []}
    assert (await get(api, run_id=str(job.run_id))).status_code == 200
    for response, text in (
        (await get(api, run="nope"), "Run nope does not exist"),
        (await get(api, run_id=str(uuid.uuid4())), "Run train does not exist"),
        (await get(api, replica_num=3), "Run train has no replica 3 with a job 0"),
    ):
        assert response.status_code == 400
        assert response.json()["detail"][0] == {"msg": text, "code": "resource_not_exists"}
    assert (await get(api, run="a%00b")).status_code == 400
    assert (await api.client.get("/api/project/a%00b/metrics/job/train")).status_code == 404
    assert (await get(api, after="0001-01-01T00:00:00+14:00", before="9999-12-31T23:59:59-14:00")).json() == {
        "metrics": []
    }
    assert (await get(api, replica_num=2**40)).status_code == 422
    assert (await get(api, limit=0)).status_code == 422
    assert (await get(api, after="yesterday")).status_code == 422


async def test_points_are_kept_for_their_time(database: Database, tmp_path: Path) -> None:
    async with serving(database, tmp_path):
        running = await add_job(database)
        finished = await add_job(database, name="over", status="done")
        gone = JobRow(id=uuid.uuid4())
        for job in (running, finished, gone):
            await add_points(database, job, *((at, 0, 0, []) for at in range(0, 100, 10)))
        collector = MetricsCollector(
            database,
            Agents(),
            dict,
            TimeToLive(20, 50, health=50),
            lambda: START + timedelta(seconds=90),
        )
        await collector.purge()
        query = select(JobMetricsPointRow.job_id, func.count()).group_by(JobMetricsPointRow.job_id)
        async with database.session() as session:
            left = {job_id: count for job_id, count in await session.execute(query)}
    assert left == {running.id: 3, finished.id: 6, gone.id: 6}


def samples(text: str) -> dict[str, dict[frozenset[str], float]]:
    """By name and label values."""
    found: dict[str, dict[frozenset[str], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.values())] = sample.value
    return found


async def test_prometheus_is_told_of_what_is_alive(database: Database, tmp_path: Path) -> None:
    async with serving(database, tmp_path, DSTACK_ENABLE_PROMETHEUS_METRICS="") as api:
        job = await add_job(database)
        over = await add_job(database, name="over", status="done")
        await add_points(database, job, (0, 1, 1, [1]), (10, 5, 2 * GIB, [30]))
        await add_points(database, over, (0, 1, 1, []))
        response = await api.anonymous().client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(response.text)
    labels = frozenset(("main", "admin", "train", "train-0-0", "fake"))
    assert found["dstack_runs"] == {frozenset(("main", "running")): 1}
    assert found["dstack_jobs"] == {frozenset(("main", "running")): 1}
    assert found["dstack_instances"] == {frozenset(("main", "fake", "busy")): 2}
    assert found["dstack_job_cpu_time_seconds_total"] == {labels: 5}
    assert found["dstack_job_memory_usage_bytes"] == {labels: 2 * GIB}
    assert found["dstack_job_gpu_usage_ratio"] == {labels | {"0"}: 0.3}
    assert found["dstack_job_gpu_count"] == {labels: 2}
    assert found["dstack_job_price_dollars_per_hour"] == {labels: 1.5}
    assert "dstack_reconcile_queue_length" in found
    assert "process_resident_memory_bytes" in found


async def test_prometheus_needs_to_be_switched_on(sqlite_api: Api) -> None:
    assert (await sqlite_api.client.get("/metrics")).status_code == 404


@pytest.mark.parametrize(("header", "status"), [(None, 401), ("Bearer wrong", 403), ("Bearer s3cret", 200)])
async def test_prometheus_behind_a_token(tmp_path: Path, header: str | None, status: int) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/sqlite.db")
    environ = {"DSTACK_ENABLE_PROMETHEUS_METRICS": "1", "DSTACK_PROMETHEUS_AUTH_TOKEN": "s3cret"}
    async with serving(database, tmp_path, **environ) as api:
        headers = {"Authorization": header} if header else {}
        response = await api.anonymous().client.get("/metrics", headers=headers)
    await database.close()
    assert response.status_code == status

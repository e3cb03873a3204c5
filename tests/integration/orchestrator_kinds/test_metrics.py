"""Running jobs are measured on their hosts, beside the loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.integration.orchestrator_kinds.conftest import Control

from dstack.agent.protocol import TaskMetrics
from dstack.backends.base import InstanceAddress
from dstack.core.runs import RunStatus
from dstack.server import clock
from dstack.server.db.queries import metrics as queries
from dstack.server.db.tables import JobMetricsPointRow
from dstack.server.hosts.connections import Agents, dump_address
from dstack.server.hosts.metrics import MetricsCollector, TimeToLive

SMALL = {"cpu": "1..", "memory": "0.1GB..", "disk": "0.1GB.."}


async def test_a_running_job_is_measured_and_an_ended_one_is_not(control: Control) -> None:
    await control.prepare()
    collector = MetricsCollector(
        control.database, control.agents, control.pool.watched, TimeToLive(3600, 3600, 3600), clock.now
    )
    await collector.collect()  # nothing runs: nobody is asked
    run_id = await control.submit("busy", commands=["while :; do :; done"], resources=SMALL)
    await control.until_status(run_id, RunStatus.RUNNING.value)
    [job] = await control.jobs(run_id)

    async def points() -> list[JobMetricsPointRow]:
        async with control.database.session() as session:
            return await queries.list_points(session, job.id, before_micro=None, limit=1000)

    async def measured_twice() -> bool:
        await collector.collect()
        found = await points()
        return len(found) > 1 and found[0].cpu_usage_micro > found[-1].cpu_usage_micro

    await control.until(measured_twice, "a second measurement")
    newest, *_ = await points()
    assert newest.memory_usage_bytes >= newest.memory_working_set_bytes > 0
    async with control.database.session() as session:
        assert list(await queries.list_newest_points(session)) == [job.id]
    await control.request_stop(run_id)
    await control.until_status(run_id, RunStatus.TERMINATED.value)
    count = len(await points())
    await collector.collect()
    assert len(await points()) == count


class AnHourBehind:
    """Agents whose hosts' clocks are wrong."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    def client(self, address: InstanceAddress) -> AnHourBehind:
        self._client = self._agents.client(address)
        return self

    async def task_metrics(self, task_id: str) -> TaskMetrics:
        told = await self._client.task_metrics(task_id)
        return replace(told, timestamp_micro=told.timestamp_micro - 3_600_000_000)


async def test_points_have_the_time_of_the_server(control: Control) -> None:
    """By which they are judged (`utilization_policy`) and deleted."""
    await control.prepare()
    agents: Any = AnHourBehind(control.agents)
    collector = MetricsCollector(
        control.database, agents, control.pool.watched, TimeToLive(1800, 1800, 1800), clock.now
    )
    run_id = await control.submit("busy", commands=["sleep 1000"], resources=SMALL)
    await control.until_status(run_id, RunStatus.RUNNING.value)
    [job] = await control.jobs(run_id)

    async def measured() -> bool:
        await collector.collect()
        await collector.purge()
        async with control.database.session() as session:
            points = await queries.list_points(session, job.id, before_micro=None, limit=9)
        return bool(points)

    await control.until(measured, "a point that stays")
    await control.request_stop(run_id)
    await control.until_status(run_id, RunStatus.TERMINATED.value)


async def test_a_host_that_does_not_answer_costs_a_point_only(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("quiet", commands=["sleep 1000"], resources=SMALL)
    await control.until_status(run_id, RunStatus.RUNNING.value)
    [job] = await control.jobs(run_id)
    assert job.instance_id is not None
    nowhere = dump_address(InstanceAddress(backend_id="gone", hostname="gone", agent_socket="/nowhere/agent.sock"))
    collector = MetricsCollector(
        control.database,
        control.agents,
        lambda: {job.instance_id: nowhere} if job.instance_id else {},
        TimeToLive(3600, 3600, 3600),
        clock.now,
    )
    await collector.collect()
    async with control.database.session() as session:
        assert await queries.list_points(session, job.id, before_micro=None, limit=9) == []
    await control.request_stop(run_id)
    await control.until_status(run_id, RunStatus.TERMINATED.value)

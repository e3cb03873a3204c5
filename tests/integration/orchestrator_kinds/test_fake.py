"""Runs on a simulated cloud: instances are created, shared out, and go when they are idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.simulated import Simulator
from tests.integration.orchestrator_kinds.conftest import Control

from dstack.server.db.engine import Database

SHORT = {"DSTACK_SIM_DURATION": "0.05", "DSTACK_SIM_LOG_LINES": "3"}


@pytest.fixture
async def cloud(database: Database, tmp_path: Path) -> AsyncIterator[tuple[Control, Simulator]]:
    starting = Simulator.started(tmp_path / "cloud")
    simulator = await asyncio.to_thread(starting.__enter__)
    try:
        control = Control(database, tmp_path, {"type": "fake", "dir": str(simulator.folder)})
        await control.start()
        yield control, simulator
        await control.stop()
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)


async def test_many_runs_on_few_instances_all_end_and_each_task_starts_once(
    cloud: tuple[Control, Simulator],
) -> None:
    control, simulator = cloud
    await control.prepare(nodes="0..3", blocks=4)
    retry = {"on_events": ["no-capacity"], "duration": "1h"}
    ids = [
        await control.submit(f"run-{num}", commands=["true"], env=SHORT, retry=retry, resources={"cpu": "4"})
        for num in range(20)
    ]
    for run_id in ids:
        assert (await control.until_status(run_id, "done", "failed", "terminated")).status == "done"
    starts = await asyncio.to_thread(simulator.starts)
    jobs = [job for run_id in ids for job in await control.jobs(run_id)]
    assert {str(job.id): starts[str(job.id)] for job in jobs} == {str(job.id): 1 for job in jobs}
    assert [instance.busy_blocks for instance in await control.instances()] == [0, 0, 0]


async def test_an_idle_instance_goes(cloud: tuple[Control, Simulator]) -> None:
    control, _ = cloud
    await control.prepare(idle_duration="0s")
    run_id = await control.submit("one", commands=["true"], env=SHORT)
    assert (await control.until_status(run_id, "done", "failed", "terminated")).status == "done"

    async def is_gone() -> bool:
        return [one.status for one in await control.instances()] == ["terminated"]

    await control.until(is_gone, "the end of the instance")
    assert (await control.instances())[0].termination_reason == "idle_timeout"

"""Runs on a simulated cloud: instances are created, shared out, and go when they are idle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from tests.e2e.simulated import Simulator
from tests.integration.orchestrator_kinds.conftest import Control

from dstack.backends.fake import cloud as fake_cloud
from dstack.server.db.engine import Database, wake
from dstack.server.db.queries import health
from dstack.server.db.tables import EventRow, FleetRow

SHORT = {"DSTACK_SIM_DURATION": "0.05", "DSTACK_SIM_LOG_LINES": "3"}


OFFERS = [
    {"name": "small"},
    {"name": "zoned", "price": 0.2, "region": "eu", "zones": ["eu-1", "eu-2"]},
    {"name": "spotty", "price": 0.05, "region": "us", "spot": True},
]


@pytest.fixture
async def cloud(database: Database, tmp_path: Path) -> AsyncIterator[tuple[Control, Simulator]]:
    starting = Simulator.started(tmp_path / "cloud")
    simulator = await asyncio.to_thread(starting.__enter__)
    try:
        control = Control(database, tmp_path, {"type": "fake", "dir": str(simulator.folder), "offers": OFFERS})
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


async def instance_of(control: Control, run_id: UUID) -> dict[str, Any]:
    """The offer of the instance that the run's job was given."""
    [job] = await control.jobs(run_id)
    [row] = [one for one in await control.instances() if one.id == job.instance_id]
    offer: dict[str, Any] = json.loads(row.offer or "{}")
    return offer


ASKED: list[tuple[dict[str, Any], str]] = [
    ({}, "small"),
    ({"regions": ["EU"]}, "zoned"),
    ({"instance_types": ["zoned", "spotty"]}, "zoned"),
    ({"availability_zones": ["eu-2"], "regions": ["eu"]}, "zoned"),
    ({"spot_policy": "spot"}, "spotty"),
    ({"spot_policy": "auto"}, "spotty"),
]
LONG = {"DSTACK_SIM_DURATION": "1000"}


async def test_the_new_instance_is_what_the_run_asks_for(cloud: tuple[Control, Simulator]) -> None:
    """Each keeps its instance, so that none takes that of another."""
    control, _ = cloud
    await control.prepare()
    ids = [
        await control.submit(f"run-{num}", commands=["true"], env=LONG, **asked)
        for num, (asked, _) in enumerate(ASKED)
    ]
    for run_id, (asked, name) in zip(ids, ASKED, strict=True):
        assert (await control.until_status(run_id, "running", "failed")).status == "running", asked
        offer = await instance_of(control, run_id)
        assert offer["instance"]["name"] == name, asked
        assert offer["availability_zones"] == asked.get("availability_zones", offer["availability_zones"])
    for run_id in ids:
        await control.request_stop(run_id)
        await control.until_status(run_id, "terminated")


@pytest.mark.parametrize(
    ("fleet", "name"),
    [({"availability_zones": ["eu-2"], "regions": ["eu"]}, "zoned"), ({"spot_policy": "spot"}, "spotty")],
)
async def test_the_new_instance_is_what_the_fleet_asks_for(
    cloud: tuple[Control, Simulator], fleet: dict[str, Any], name: str
) -> None:
    control, _ = cloud
    await control.prepare(**fleet)
    run_id = await control.submit("one", commands=["true"], env=SHORT)
    assert (await control.until_status(run_id, "done", "failed")).status == "done"
    assert (await instance_of(control, run_id))["instance"]["name"] == name


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_price": 0.01}, "over the maximum"),
    ({"reservation": "r-1"}, "nobody can reserve it"),
    ({"availability_zones": ["asia-1"], "regions": ["eu"]}, "in none of the availability zones"),
    ({"creation_policy": "reuse"}, "No capacity"),
    ({"fleets": ["g"]}, "No fleets among g"),
    ({"instances": ["f-7"]}, "No capacity"),
    ({"regions": ["us"]}, "the fleet has eu, the run has us"),
]


async def test_what_cannot_be_had_is_told(cloud: tuple[Control, Simulator]) -> None:
    control, _ = cloud
    await control.prepare(regions=["eu"])
    ids = [
        await control.submit(f"run-{num}", commands=["true"], env=SHORT, **asked)
        for num, (asked, _) in enumerate(REFUSED)
    ]
    for run_id, (asked, why) in zip(ids, REFUSED, strict=True):
        assert (await control.until_status(run_id, "done", "failed")).status == "failed", asked
        [job] = await control.jobs(run_id)
        assert job.termination_reason == "failed_to_start_due_to_no_capacity", asked
        assert why in (job.termination_reason_message or ""), asked


async def test_tags_of_fleet_and_run_are_given_to_the_cloud(cloud: tuple[Control, Simulator]) -> None:
    control, simulator = cloud
    await control.prepare(tags={"team": "a", "from": "fleet"})
    run_id = await control.submit("one", commands=["true"], env=SHORT, tags={"from": "run", "job": "1"})
    assert (await control.until_status(run_id, "done", "failed")).status == "done"
    [made] = (await asyncio.to_thread(simulator.call, "/instances"))["instances"]
    assert made["host"]["tags"] == {"team": "a", "from": "run", "job": "1"}


async def test_a_fleet_that_is_changed_lets_go_of_what_no_longer_fits(cloud: tuple[Control, Simulator]) -> None:
    control, _ = cloud
    await control.prepare()
    run_id = await control.submit("one", commands=["true"], env=SHORT)
    assert (await control.until_status(run_id, "done", "failed")).status == "done"
    assert (await instance_of(control, run_id))["instance"]["name"] == "small"
    async with control.database.transaction() as session:
        row = (await session.scalars(select(FleetRow))).one()
        spec = json.loads(row.spec)
        spec["configuration"]["regions"] = ["eu"]
        row.spec = json.dumps(spec)
        wake(session, f"fleet:{row.id}")

    async def is_gone() -> bool:
        return [one.status for one in await control.instances()] == ["terminated"]

    await control.until(is_gone, "the end of the instance")
    assert (await control.instances())[0].termination_reason == "fleet_spec_mismatch"


async def test_the_job_that_an_instance_is_made_for_has_all_of_its_blocks(
    cloud: tuple[Control, Simulator],
) -> None:
    """However many these turn out to be: 16, one a CPU."""
    control, _ = cloud
    await control.prepare(blocks="auto", nodes="0..1")
    retry = {"on_events": ["no-capacity"]}
    made_for = await control.submit("one", commands=["true"], env=LONG, resources={"cpu": "8.."})
    await control.until_status(made_for, "running")
    waiting = await control.submit("two", commands=["true"], env=SHORT, resources={"cpu": "4"}, retry=retry)
    [instance] = await control.instances()
    [job] = await control.jobs(made_for)
    assert (instance.total_blocks, instance.busy_blocks, job.blocks) == (16, 16, 16)
    await control.request_stop(made_for)
    assert (await control.until_status(waiting, "done", "failed")).status == "done"
    [job] = await control.jobs(waiting)
    assert json.loads(job.runtime_data or "{}")["cpu"] == 4

    async def is_free() -> bool:
        return [one.busy_blocks for one in await control.instances()] == [0]

    await control.until(is_free, "all blocks to be given back")


async def set_faults(simulator: Simulator, **faults: Any) -> None:
    await asyncio.to_thread(fake_cloud.call, simulator.folder / "cloud.sock", "PUT", "/faults", faults)


async def test_no_capacity_ends_a_run_and_delays_one_that_retries(cloud: tuple[Control, Simulator]) -> None:
    control, simulator = cloud
    await control.prepare()
    await set_faults(simulator, no_capacity=True)
    refused = await control.submit("refused", commands=["true"], env=SHORT)
    assert (await control.until_status(refused, "done", "failed")).status == "failed"
    [job] = await control.jobs(refused)
    assert job.termination_reason == "failed_to_start_due_to_no_capacity"
    assert "no such instance to be had" in (job.termination_reason_message or "")
    await set_faults(simulator, no_capacity=1)
    retry = {"on_events": ["no-capacity"], "duration": "1h"}
    delayed = await control.submit("delayed", commands=["true"], env=SHORT, retry=retry)
    assert (await control.until_status(delayed, "pending", "done", "failed")).status != "failed"
    assert (await control.jobs(delayed))[0].termination_reason == "failed_to_start_due_to_no_capacity"


async def test_a_lost_answer_and_a_slow_cloud_make_one_instance(cloud: tuple[Control, Simulator]) -> None:
    control, simulator = cloud
    await control.prepare()
    await set_faults(simulator, lose_answer=2, slow_seconds=0.2)
    run_id = await control.submit("one", commands=["true"], env=SHORT)
    assert (await control.until_status(run_id, "done", "failed")).status == "done"
    made = (await asyncio.to_thread(simulator.call, "/instances"))["instances"]
    assert len(made) == len(await control.instances()) == 1


async def test_a_host_that_vanishes_is_out_of_reach_and_its_run_goes_on(cloud: tuple[Control, Simulator]) -> None:
    control, simulator = cloud
    await control.prepare()
    run_id = await control.submit("one", commands=["true"], env=LONG)
    await control.until_status(run_id, "running")
    [made] = (await asyncio.to_thread(simulator.call, "/instances"))["instances"]
    await set_faults(simulator, vanish=[made["name"]])

    async def is_missed() -> bool:
        return [one.unreachable_since is not None for one in await control.instances()] == [True]

    await control.until(is_missed, "the loss of contact")
    assert (await control.run(run_id)).status == "running"


async def test_what_is_wrong_with_a_host_is_on_record_until_it_is_well(cloud: tuple[Control, Simulator]) -> None:
    control, simulator = cloud
    await control.prepare()
    run_id = await control.submit("one", commands=["true"], env=LONG)
    await control.until_status(run_id, "running")
    [made] = (await asyncio.to_thread(simulator.call, "/instances"))["instances"]
    [instance] = await control.instances()
    for faults, status in (({"unhealthy": {made["name"]: "it smokes"}}, "failure"), ({}, "healthy")):
        await set_faults(simulator, **faults)

        async def is_told(status: str = status) -> bool:
            return [one.health for one in await control.instances()] == [status]

        await control.until(is_told, f"health {status}")
    async with control.database.session() as session:
        checks = await health.list_checks(session, instance.id)
        told = (await session.scalars(select(EventRow.message).where(EventRow.message.contains("health")))).all()
    assert [(check.status, "smokes" in check.problems) for check in checks] == [
        ("healthy", False),
        ("failure", True),
    ]
    assert sorted(told) == [
        "Instance health changed FAILURE -> HEALTHY",
        "Instance health changed HEALTHY -> FAILURE (it smokes)",
    ]
    assert (await control.run(run_id)).status == "running"

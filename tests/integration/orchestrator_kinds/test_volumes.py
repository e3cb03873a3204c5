"""Volumes of a simulated cloud: made, mounted, taken from hosts, and deleted."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update
from tests.e2e.simulated import Simulator
from tests.integration.orchestrator_kinds.conftest import Control

from dstack.backends.fake import cloud as fake_cloud
from dstack.core.canonical import dump_json
from dstack.core.configurations.volume import AWSVolumeConfiguration
from dstack.server import clock
from dstack.server.db.engine import Database, wake
from dstack.server.db.queries import volumes as queries
from dstack.server.db.tables import VolumeRow

SHORT = {"DSTACK_SIM_DURATION": "0.05"}
LONG = {"DSTACK_SIM_DURATION": "60"}


class Cloud:
    """What a test does with the volumes."""

    def __init__(self, control: Control, simulator: Simulator) -> None:
        self.control = control
        self.simulator = simulator

    async def create(self, name: str, **configuration: Any) -> UUID:
        values = {"region": "simulated", "name": name, "size": None if "volume_id" in configuration else 10}
        parsed = AWSVolumeConfiguration.model_validate(values | configuration)
        now, id = clock.now(), uuid.uuid4()
        row = VolumeRow(
            id=id,
            project_id=self.control.project_id,
            user_id=self.control.user_id,
            name=name,
            created_at=now,
            last_processed_at=now,
            configuration=dump_json(parsed),
            is_external=parsed.volume_id is not None,
            status="submitted",
        )
        async with self.control.database.transaction() as session:
            session.add(row)
            wake(session, f"volume:{id}")
        return id

    async def row(self, id: UUID) -> VolumeRow:
        async with self.control.database.session() as session:
            return (await session.execute(select(VolumeRow).where(VolumeRow.id == id))).scalar_one()

    async def until(self, id: UUID, status: str) -> VolumeRow:
        async def holds() -> bool:
            return (await self.row(id)).status == status

        await self.control.until(holds, f"volume {status}")
        return await self.row(id)

    async def until_attached(self, id: UUID, count: int) -> None:
        async def holds() -> bool:
            async with self.control.database.session() as session:
                return len(await queries.list_attachments(session, [id])) == count

        await self.control.until(holds, f"{count} attachments")

    async def request_deletion(self, id: UUID) -> None:
        async with self.control.database.transaction() as session:
            await session.execute(update(VolumeRow).where(VolumeRow.id == id).values(delete_requested=True))
            wake(session, f"volume:{id}")

    async def disk(self, id: UUID) -> Any:
        """As the simulated cloud sees it; None when it has none of that id."""
        disk = json.loads((await self.row(id)).provisioning_data or "{}")
        file = self.simulator.folder / "volumes" / f"{disk['volume_id']}.json"
        return json.loads(file.read_text()) if file.exists() else None


@pytest.fixture
async def cloud(database: Database, tmp_path: Path) -> AsyncIterator[Cloud]:
    starting = Simulator.started(tmp_path / "cloud")
    simulator = await asyncio.to_thread(starting.__enter__)
    try:
        settings = {"type": "fake", "dir": str(simulator.folder), "volumes_as": "aws"}
        control = Control(database, tmp_path, settings)
        await control.start()
        yield Cloud(control, simulator)
        await control.stop()
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)


async def test_a_volume_is_made_mounted_detached_and_deleted(cloud: Cloud) -> None:
    control = cloud.control
    await control.prepare(nodes="0..1")
    id = await cloud.create("data")
    run_id = await control.submit("one", commands=["true"], env=LONG, volumes=["data:/data"])
    await cloud.until(id, "active")
    await control.until_status(run_id, "running")
    job = (await control.jobs(run_id))[0]
    assert json.loads(job.runtime_data or "")["volume_names"] == ["data"]
    host = (await control.instances())[0]
    address = json.loads(host.address or "")
    disk = await cloud.disk(id)
    assert (disk["size_gb"], disk["attachments"]) == (10, [address["backend_id"]])
    task = json.loads(
        (Path(address["agent_socket"][: -len(".sock")]) / "tasks" / str(job.id) / "spec.json").read_text()
    )
    assert task["mounts"] == [{"host_path": disk["path"], "path": "/data", "optional": False}]
    await control.request_stop(run_id, "aborted_by_user")
    await control.until_status(run_id, "terminated")
    await cloud.until_attached(id, 0)
    assert (await cloud.disk(id))["attachments"] == []
    await cloud.request_deletion(id)
    assert (await cloud.until(id, "deleted")).deleted
    assert await cloud.disk(id) is None


async def test_one_after_the_other_on_different_instances(cloud: Cloud) -> None:
    """The second waits until the volume is taken from the first one's host; while it is used, the third ends."""
    control = cloud.control
    await control.prepare(nodes="0..3")
    id = await cloud.create("data")
    await cloud.until(id, "active")
    first = await control.submit("first", commands=["true"], env=LONG, volumes=["data:/data"])
    await control.until_status(first, "running")
    third = await control.submit("third", commands=["true"], env=SHORT, volumes=["data:/data"])
    assert (await control.until_status(third, "failed")).termination_reason == "job_failed"
    job = (await control.jobs(third))[0]
    assert (job.termination_reason, job.termination_reason_message) == (
        "volume_error",
        "Volume data is used by another job",
    )
    await control.request_stop(first, "aborted_by_user")
    await control.until_status(first, "terminated")
    second = await control.submit("second", commands=["true"], env=SHORT, volumes=["data:/data"])
    await control.until_status(second, "done")


async def test_what_no_backend_makes_fails_and_so_does_who_needs_it(cloud: Cloud) -> None:
    control = cloud.control
    await control.prepare()
    lost = await cloud.create("lost", volume_id="vol-nowhere")
    row = await cloud.until(lost, "failed")
    assert row.status_message == "The simulated cloud refused: there is no volume vol-nowhere"
    run_id = await control.submit("one", commands=["true"], env=SHORT, volumes=["lost:/data"])
    await control.until_status(run_id, "failed")
    job = (await control.jobs(run_id))[0]
    assert (job.termination_reason, "vol-nowhere" in (job.termination_reason_message or "")) == (
        "volume_error",
        True,
    )


async def test_a_disk_that_was_there_before_stays(cloud: Cloud) -> None:
    await cloud.control.prepare()
    made = await cloud.create("made")
    disk = json.loads((await cloud.until(made, "active")).provisioning_data or "")
    known = await cloud.create("known", volume_id=disk["volume_id"])
    assert json.loads((await cloud.until(known, "active")).provisioning_data or "") == disk
    await cloud.request_deletion(known)
    await cloud.until(known, "deleted")
    assert await cloud.disk(made) is not None


async def test_what_nobody_uses_is_cleaned_up(cloud: Cloud) -> None:
    await cloud.control.prepare()
    id = await cloud.create("data", auto_cleanup_duration="1s")
    await cloud.until(id, "deleted")
    assert await cloud.disk(id) is None


async def test_an_answer_that_is_lost_makes_no_second_disk(cloud: Cloud) -> None:
    socket = cloud.simulator.folder / "cloud.sock"
    await asyncio.to_thread(fake_cloud.call, socket, "PUT", "/faults", {"lose_answer": 1})
    await cloud.control.prepare()
    id = await cloud.create("data")
    await cloud.until(id, "active")
    assert len(list((cloud.simulator.folder / "volumes").glob("*.json"))) == 1

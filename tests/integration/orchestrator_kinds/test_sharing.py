"""Runs of one project on a fleet that another one shares."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import delete, select
from tests.e2e.simulated import Simulator
from tests.fixtures.rows import EPOCH
from tests.integration.orchestrator_kinds.conftest import Control

from dstack.server.db.engine import Database, wake
from dstack.server.db.queries import sharing
from dstack.server.db.tables import ExportedFleetRow, ExportRow, FleetRow, ImportRow, ProjectRow

SHORT = {"DSTACK_SIM_DURATION": "0.05"}
LONG = {"DSTACK_SIM_DURATION": "60"}


@pytest.fixture
async def control(database: Database, tmp_path: Path) -> AsyncIterator[Control]:
    starting = Simulator.started(tmp_path / "cloud")
    simulator = await asyncio.to_thread(starting.__enter__)
    try:
        control = Control(database, tmp_path, {"type": "fake", "dir": str(simulator.folder)})
        await control.start()
        await control.prepare(nodes="0..1")
        yield control
        await control.stop()
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)


async def add_importer(control: Control, *, is_import: bool = True) -> UUID:
    """A project `team` without a fleet of its own, which imports the one of `main`."""
    export_id, project_id = uuid.uuid4(), uuid.uuid4()
    async with control.database.transaction() as session:
        fleet_id = await session.scalar(select(FleetRow.id))
        values = {"owner_id": control.user_id, "ssh_private_key": "", "ssh_public_key": "", "status": "active"}
        project = ProjectRow(id=project_id, name="team", created_at=EPOCH, last_processed_at=EPOCH, **values)
        session.add(project)
        session.add(ExportRow(id=export_id, project_id=control.project_id, name="gpus", created_at=EPOCH))
        await session.flush()
        session.add(ExportedFleetRow(export_id=export_id, fleet_id=fleet_id))
        if is_import:
            session.add(ImportRow(export_id=export_id, project_id=project_id, created_at=EPOCH))
    return project_id


async def test_a_run_of_the_other_project_makes_and_uses_an_instance(control: Control) -> None:
    team = await add_importer(control)
    run_id = await control.submit("theirs", project_id=team, commands=["true"], env=SHORT)
    await control.until_status(run_id, "done")
    assert [one.project_id for one in await control.instances()] == [control.project_id]
    mine = await control.submit("mine", commands=["true"], env=SHORT)
    await control.until_status(mine, "done")
    assert len(await control.instances()) == 1


async def test_they_wait_for_one_another(control: Control) -> None:
    """The fleet has room for one: the run that waits is told when the other project's run is over."""
    team = await add_importer(control)
    first = await control.submit("mine", commands=["true"], env=LONG)
    await control.until_status(first, "running")
    retry = {"on_events": ["no-capacity"], "duration": "1h"}
    second = await control.submit("theirs", project_id=team, commands=["true"], env=SHORT, retry=retry)
    third = await control.submit("other", project_id=team, commands=["true"], env=SHORT, fleets=["f"])
    assert (await control.until_status(third, "failed")).termination_reason == "job_failed"
    await control.request_stop(first, "aborted_by_user")
    await control.until_status(second, "done")
    fourth = await control.submit("named", project_id=team, commands=["true"], env=SHORT, fleets=["main/f"])
    await control.until_status(fourth, "done")


async def test_without_an_import_there_is_no_fleet(control: Control) -> None:
    team = await add_importer(control, is_import=False)
    run_id = await control.submit("theirs", project_id=team, commands=["true"], env=SHORT)
    await control.until_status(run_id, "failed")
    job = (await control.jobs(run_id))[0]
    assert (job.termination_reason_message or "").startswith("No fleets")


async def test_who_loses_the_fleet_loses_the_jobs_on_it(control: Control) -> None:
    team = await add_importer(control)
    run_id = await control.submit("theirs", project_id=team, commands=["true"], env=LONG)
    await control.until_status(run_id, "running")
    async with control.database.transaction() as session:
        fleet_id = await session.scalar(select(FleetRow.id))
        assert fleet_id is not None
        assert await sharing.revoke(session, [fleet_id]) == []
        await session.execute(delete(ImportRow))
        ended = await sharing.revoke(session, [fleet_id])
        wake(session, *(f"job:{id}" for id in ended))
    await control.until_status(run_id, "failed")
    assert (await control.jobs(run_id))[0].termination_reason == "instance_access_revoked"

"""A run with a schedule waits, starts, ends, and waits for the next time; also over restarts of the server."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import update
from tests.integration.orchestrator_kinds.conftest import Control

from dstack.core.cron import next_trigger
from dstack.server import clock
from dstack.server.db.engine import wake
from dstack.server.db.tables import RunRow

CRON = "0 8 1 1 *"


async def submit(control: Control, name: str, **configuration: object) -> UUID:
    return await control.submit(name, schedule={"cron": CRON}, **configuration)


async def trigger(control: Control, run_id: UUID, within: timedelta = timedelta()) -> None:
    """As if the time had come."""
    async with control.database.transaction() as session:
        values = {"next_triggered_at": clock.now() + within}
        await session.execute(update(RunRow).where(RunRow.id == run_id).values(**values))
        wake(session, f"run:{run_id}")


async def waits(control: Control, run_id: UUID, submissions: int) -> None:
    """For the next time that its schedule says."""

    async def holds() -> bool:
        run, jobs = await control.run(run_id), await control.jobs(run_id)
        at = next_trigger([CRON], clock.now())
        return run.status == "pending" and run.next_triggered_at == at and len(jobs) == submissions

    await control.until(holds, "the run to wait for its next time")


async def test_it_starts_at_its_time_and_waits_for_the_next(control: Control) -> None:
    await control.prepare()
    run_id = await submit(control, "nightly", commands=[f"echo ran >> {control.folder}/runs"])
    await waits(control, run_id, submissions=0)
    for count in (1, 2):
        await trigger(control, run_id, within=timedelta(milliseconds=100))
        await waits(control, run_id, submissions=count)
        assert (control.folder / "runs").read_text() == "ran\n" * count
    jobs = await control.jobs(run_id)
    assert [(job.submission_num, job.status) for job in jobs] == [(0, "done"), (1, "done")]
    await control.request_stop(run_id)
    run = await control.until_status(run_id, "terminated")
    assert run.termination_reason == "stopped_by_user"


async def test_a_time_that_comes_while_the_server_is_away_is_made_up_for_once(control: Control) -> None:
    await control.prepare()
    run_id = await submit(control, "nightly", commands=["true"])
    await waits(control, run_id, submissions=0)
    await control.stop()
    await trigger(control, run_id, within=timedelta(days=-3))
    await control.start()
    await waits(control, run_id, submissions=1)
    await control.request_stop(run_id)
    await control.until_status(run_id, "terminated")


async def test_one_that_fails_is_started_again_at_its_next_time(control: Control) -> None:
    await control.prepare()
    run_id = await submit(control, "nightly", commands=["exit 3"])
    await trigger(control, run_id)
    await waits(control, run_id, submissions=1)
    assert [(job.status, job.exit_status) for job in await control.jobs(run_id)] == [("failed", 3)]
    assert (await control.run(run_id)).termination_reason is None
    await control.request_stop(run_id)
    await control.until_status(run_id, "terminated")


async def test_one_that_is_stopped_while_it_runs_does_not_come_back(control: Control) -> None:
    await control.prepare()
    run_id = await submit(control, "nightly", commands=["sleep 1000"])
    await trigger(control, run_id)
    await control.until_status(run_id, "running")
    assert (await control.run(run_id)).next_triggered_at is None
    await control.request_stop(run_id)
    await control.until_status(run_id, "terminated")

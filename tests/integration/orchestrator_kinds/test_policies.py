"""Jobs that run are ended when nobody is connected, or when their accelerators are idle."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import update
from tests.integration.orchestrator_kinds.conftest import Control

from dstack.server import clock
from dstack.server.db.engine import wake
from dstack.server.db.queries import metrics
from dstack.server.db.tables import JobRow
from dstack.server.hosts.activity import Activity


async def look_back(control: Control, job_id: UUID, ago: timedelta) -> None:
    """As if the last connection had ended so long ago."""
    async with control.database.transaction() as session:
        await session.execute(update(JobRow).where(JobRow.id == job_id).values(last_active_at=clock.now() - ago))
        wake(session, f"job:{job_id}")


async def test_a_dev_environment_ends_once_nobody_is_connected(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("dev", type="dev-environment", inactivity_duration="1h")
    await control.until_status(run_id, "running")
    [job] = await control.jobs(run_id)

    async def is_remembered() -> bool:
        return (await control.jobs(run_id))[0].last_active_at is not None

    await control.until(is_remembered, "the time at which it began to run")
    here, elsewhere = Activity(control.database, clock.now), Activity(control.database, clock.now)
    with elsewhere.connected(job.id), elsewhere.connected(job.id):
        assert elsewhere.connections(job.id) == 2
        await look_back(control, job.id, timedelta(minutes=30))
        before = (await control.jobs(run_id))[0].last_active_at
        await here.report()  # nobody is connected through this one: it says nothing
        assert (await control.jobs(run_id))[0].last_active_at == before
        await elsewhere.report()
        after = (await control.jobs(run_id))[0].last_active_at
        assert before is not None
        assert after is not None
        assert after > before
    assert elsewhere.connections(job.id) == 0
    assert (await control.run(run_id)).status == "running"
    await control.stop()
    await control.start()
    await look_back(control, job.id, timedelta(hours=2))
    await control.until_status(run_id, "failed")
    [job] = await control.jobs(run_id)
    assert (job.status, job.termination_reason) == ("terminated", "inactivity_duration_exceeded")


async def test_an_end_of_a_connection_is_told_although_it_was_short(control: Control) -> None:
    await control.prepare()
    run_id = await control.submit("dev", type="dev-environment")
    await control.until_status(run_id, "running")
    [job] = await control.jobs(run_id)
    await look_back(control, job.id, timedelta(hours=1))
    before = (await control.jobs(run_id))[0].last_active_at
    activity = Activity(control.database, clock.now)
    activity.start()
    with activity.connected(job.id):
        pass
    await activity.stop()
    after = (await control.jobs(run_id))[0].last_active_at
    assert before is not None
    assert after is not None
    assert after - before > timedelta(minutes=50)
    await control.request_stop(run_id)
    await control.until_status(run_id, "terminated")


async def test_a_task_whose_gpu_is_idle_ends(control: Control) -> None:
    await control.prepare()
    policy = {"min_gpu_utilization": 10, "time_window": "5m"}
    ids = {}
    for name, percent in (("idle", 3), ("busy", 90)):
        run_id = await control.submit(name, commands=["sleep 1000"], utilization_policy=policy)
        await control.until_status(run_id, "running")
        [job] = await control.jobs(run_id)
        ids[name] = (run_id, job.id)
        await measure(control, job.id, percent)
    await control.until_status(ids["idle"][0], "failed")
    [job] = await control.jobs(ids["idle"][0])
    assert (job.status, job.termination_reason) == ("terminated", "terminated_due_to_utilization_policy")
    assert "less than 10%" in (job.termination_reason_message or "")
    assert (await control.run(ids["busy"][0])).status == "running"
    await control.request_stop(ids["busy"][0])
    await control.until_status(ids["busy"][0], "terminated")


async def measure(control: Control, job_id: UUID, percent: int) -> None:
    """As if a collector had measured for more than five minutes."""
    now = int(clock.now().timestamp() * 1_000_000)
    gpus = f'[{{"gpu_memory_usage_bytes": 1, "gpu_util_percent": {percent}}}]'
    points = [
        {
            "job_id": job_id,
            "timestamp_micro": now - seconds * 1_000_000,
            "cpu_usage_micro": 1,
            "memory_usage_bytes": 1,
            "memory_working_set_bytes": 1,
            "gpus": gpus,
        }
        for seconds in range(5, 400, 10)
    ]
    async with control.database.transaction() as session:
        await metrics.add_points(session, points)
        wake(session, f"job:{job_id}")

"""Tasks of several nodes: in which order they start, when they are over, and that they are retried as a whole."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from sqlalchemy import update
from tests.integration.orchestrator_kinds.conftest import Control

from dstack.server import clock
from dstack.server.db.engine import wake
from dstack.server.db.tables import JobRow


def began(job: JobRow) -> float:
    """When its process was started, by the clock of this machine."""
    return float(json.loads(job.task_state or "{}")["started_at"])


@pytest.mark.parametrize(("order", "first"), [("master-first", 0), ("workers-first", 1)])
async def test_nodes_start_in_the_order_that_is_asked_for(control: Control, order: str, first: int) -> None:
    await control.prepare()
    stay = f"until [ -e {control.folder}/go ]; do sleep 0.05; done"
    run_id = await control.submit("nodes", nodes=2, commands=[stay], startup_order=order)

    async def all_run() -> bool:
        return [job.status for job in await control.jobs(run_id)] == ["running", "running"]

    await control.until(all_run, "both nodes to run")
    jobs = await control.jobs(run_id)
    early, late = jobs[first], jobs[1 - first]
    assert late.provisioned_at is not None
    assert late.provisioned_at.timestamp() > began(early)
    (control.folder / "go").touch()
    assert (await control.until_status(run_id, "done", "failed")).status == "done"


async def test_the_end_of_the_master_ends_all_if_asked_for(control: Control) -> None:
    await control.prepare()
    command = "if [ $DSTACK_NODE_RANK != 0 ]; then sleep 1000; fi"
    run_id = await control.submit("nodes", nodes=2, commands=[command], stop_criteria="master-done")
    run = await control.until_status(run_id, "done", "failed")
    assert (run.status, run.termination_reason) == ("done", "all_jobs_done")
    assert [job.status for job in await control.jobs(run_id)] == ["done", "done"]


async def test_groups_have_commands_of_their_own_and_know_each_other(control: Control) -> None:
    await control.prepare()
    say = "echo $DSTACK_NODE_RANK of $DSTACK_NODES_NUM: ${{ groups[head].nodes[0].IP_ADDRESS }}"
    groups = [
        {"name": "head", "commands": ["echo head", say]},
        {"name": "rest", "nodes": 2, "commands": ["echo rest", say]},
    ]
    run_id = await control.submit("groups", groups=groups)
    assert (await control.until_status(run_id, "done", "failed")).status == "done"
    told = [(await control.output("groups", job.id)).splitlines() for job in await control.jobs(run_id)]
    assert [lines[0] for lines in told] == ["head", "rest", "rest"]
    address = told[0][1].rpartition(" ")[2]
    assert address.startswith("127.")
    assert [lines[1] for lines in told] == [f"{rank} of 3: {address}" for rank in range(3)]


async def test_nodes_reach_each_other_with_a_key_of_their_attempt(control: Control) -> None:
    await control.prepare()
    last = "eval last=\\${$#}; if [ $DSTACK_NODE_RANK = 1 ]; then sleep 1000; fi"
    say = "set -- $DSTACK_NODES_IPS; " + last + "; ssh $last 'echo $DSTACK_NODE_RANK of $DSTACK_NODES_NUM'"
    asked = {"startup_order": "workers-first", "stop_criteria": "master-done"}
    run_id = await control.submit("nodes", nodes=2, commands=[say], **asked)
    assert (await control.until_status(run_id, "done", "failed")).status == "done", await control.story()
    master, worker = await control.jobs(run_id)
    assert await control.output("nodes", master.id) == "1 of 2\n"
    assert worker.node_key is None
    private, public = json.loads(control.encryption.decrypt(master.node_key or "", f"jobs.node_key:{master.id}"))
    assert private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert public.startswith("ssh-ed25519 ")
    for job in (master, worker):
        assert json.loads(job.job_spec)["ssh_key"] is None


async def test_a_replica_is_retried_as_a_whole(control: Control) -> None:
    await control.prepare()
    command = f"if [ $DSTACK_NODE_RANK = 1 ] && [ ! -e {control.folder}/go ]; then exit 7; fi"
    retry = {"on_events": ["error"], "duration": "1h"}
    run_id = await control.submit("nodes", nodes=2, commands=[command], retry=retry)

    async def both_ended() -> bool:
        run, jobs = await control.run(run_id), await control.jobs(run_id)
        return run.status == "pending" and all(job.finished_at for job in jobs)

    await control.until(both_ended, "the first attempt to be over")
    assert (await control.run(run_id)).resubmission_attempt == 1
    assert len(await control.jobs(run_id)) == 2
    (control.folder / "go").touch()
    async with control.database.transaction() as session:  # as if the time to wait were over
        ago = {"last_processed_at": clock.now() - timedelta(seconds=16)}
        await session.execute(update(JobRow).where(JobRow.run_id == run_id).values(**ago))
        wake(session, f"run:{run_id}")
    assert (await control.until_status(run_id, "done", "failed")).status == "done"
    jobs = await control.jobs(run_id)
    assert [(job.submission_num, job.job_num) for job in jobs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [job.status for job in jobs][1:] == ["failed", "done", "done"]
    keys = [job.node_key for job in jobs if job.job_num == 0]
    assert None not in keys
    assert keys[0] != keys[1]

"""A host that runs what no job of the server's asks for any more."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests.integration.orchestrator_kinds.conftest import Control

from dstack.agent.protocol import TaskSpec
from dstack.server.hosts.agent_client import AgentClient


async def test_a_task_that_no_job_knows_is_stopped_and_forgotten(control: Control, tmp_path: Path) -> None:
    await control.prepare()
    run_id = await control.submit("known", commands=[f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"])
    await control.until_status(run_id, "running")
    (job,) = await control.jobs(run_id)
    client = AgentClient.on_socket(str(control.folder / "hosts/local/agent.sock"))
    left = TaskSpec(str(uuid.uuid4()), "left", "process", ["/bin/sleep", "1000"])
    await client.put_task(left)

    async def forgotten() -> bool:
        return [task.id for task in await client.list_tasks()] == [str(job.id)]

    await control.until(forgotten, "the unknown task to be forgotten")
    await client.close()
    (tmp_path / "go").touch()
    assert (await control.until_status(run_id, "done", "failed")).status == "done"

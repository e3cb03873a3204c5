"""What agents of each released version left on disk is still read: see `tools.record_journal`."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.docker import DockerDaemon
from tests.integration.agent.harness import AgentProcess, until

from dstack import __version__
from dstack.agent.protocol import ENDED, TaskSpec, iter_frames

JOURNALS = Path(__file__).parents[2] / "fixtures" / "agent_journals"
VERSIONS = sorted(path.name for path in JOURNALS.iterdir())
IN_CONTAINERS = "container-running"


class Heir(AgentProcess):
    """Today's agent on the folder of an older one; `expected` by task."""

    def __init__(self, folder: Path, version: str) -> None:
        shutil.copytree(JOURNALS / version / "agent", folder)
        super().__init__(folder)
        self.expected: dict[str, dict[str, Any]] = json.loads((JOURNALS / version / "expected.json").read_text())

    async def told(self, task_id: str) -> dict[str, Any]:
        state = await self.client.get_task(task_id)
        chunks = [
            chunk.frames async for chunk in self.client.follow_logs(task_id, state.log_acknowledged, follow=False)
        ]
        output = b"".join(payload for _, payload, _ in iter_frames(b"".join(chunks))).decode()
        told = {
            "reason": state.reason,
            "exit_status": state.exit_status,
            "message": state.message,
            "output": output,
        }
        return {name: told[name] for name in self.expected[task_id]}


@pytest.fixture(params=VERSIONS)
async def heir(request: pytest.FixtureRequest) -> AsyncIterator[Heir]:
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        running = Heir(Path(folder, "agent"), request.param)
        yield running
        await running.client.close()
        running.end(signal.SIGTERM)


def test_this_version_is_recorded() -> None:
    assert __version__ in VERSIONS, "record it: `python -m tools.record_journal` (docs/contributing/release.md)"


async def test_finished_and_interrupted_tasks_are_told(heir: Heir) -> None:
    await heir.start("--docker-socket", str(heir.folder / "no-docker.sock"))
    assert {task.id for task in await heir.client.list_tasks()} == set(heir.expected)
    for task_id in heir.expected.keys() - {IN_CONTAINERS}:
        assert (await heir.client.get_task(task_id)).status == ENDED
        assert await heir.told(task_id) == heir.expected[task_id]
    interrupted = (await heir.client.get_task("running")).message
    assert interrupted in (
        "the host was restarted while the job ran",
        "the supervisor of the job was killed, and the job with it",
    )


async def test_what_was_asked_for_then_is_neither_started_again_nor_in_the_way(heir: Heir) -> None:
    await heir.start("--docker-socket", str(heir.folder / "no-docker.sock"))
    newest = max(task.seq for task in await heir.client.list_tasks())
    known = json.loads((heir.folder / "tasks" / "done" / "spec.json").read_text())
    assert (await heir.client.put_task(TaskSpec.from_json(known))).status == ENDED
    await heir.client.put_task(TaskSpec(id="new", name="new", executor="process", commands=["/bin/true"]))
    state = await heir.ended("new")
    assert state.reason == "done_by_runner"
    assert state.seq > newest
    for task_id in heir.expected.keys() - {IN_CONTAINERS}:
        await heir.client.delete_task(task_id)
    assert {task.id for task in await heir.client.list_tasks()} == {"new", IN_CONTAINERS}


async def test_a_container_that_is_gone_is_told_as_ended(heir: Heir, docker_daemon: DockerDaemon) -> None:
    await heir.start("--docker-socket", str(docker_daemon.socket))

    async def has_ended() -> bool:
        return (await heir.client.get_task(IN_CONTAINERS)).status == ENDED

    await until(has_ended)
    assert await heir.told(IN_CONTAINERS) == heir.expected[IN_CONTAINERS]

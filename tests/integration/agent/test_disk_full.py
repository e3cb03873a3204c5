"""An agent on a small disk of its own, which is filled up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.agent.harness import AgentProcess, until
from tests.integration.agent.test_process import shell

from dstack.agent.protocol import iter_frames
from dstack.server.hosts.agent_client import AgentRefused


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
async def agent(small_disk: Path) -> AsyncIterator[AgentProcess]:
    running = AgentProcess(small_disk)
    await running.start()
    yield running
    (small_disk / "filler").unlink(missing_ok=True)
    await running.clean_up()


def fill(folder: Path) -> None:
    with open(folder / "filler", "ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


async def test_a_task_is_refused_clearly_and_can_be_put_later(agent: AgentProcess) -> None:
    fill(agent.folder)
    task = shell("echo hello")
    with pytest.raises(AgentRefused, match="the disk of the host is full") as caught:
        await agent.client.put_task(task)
    assert caught.value.status == 507
    (agent.folder / "filler").unlink()
    await agent.client.put_task(task)
    assert (await agent.ended(task.id)).exit_status == 0


async def test_a_job_waits_with_its_output_and_nothing_is_lost(agent: AgentProcess) -> None:
    task = shell("while [ ! -e go ]; do sleep 0.02; done; seq 100000")
    await agent.client.put_task(task)
    work = agent.folder / "tasks" / task.id / "work"
    await until(lambda: _exists(work))
    (work / "go").touch()
    fill(agent.folder)

    async def says_so() -> bool:
        return "the disk of the host is full" in (await agent.client.get_task(task.id)).message

    await until(says_so)
    agent.end()
    (agent.folder / "filler").unlink()
    await agent.start()
    assert (await agent.ended(task.id)).exit_status == 0
    chunks = [chunk.frames async for chunk in agent.client.follow_logs(task.id)]
    output = b"".join(payload for _, payload, _ in iter_frames(b"".join(chunks)))
    assert output == b"".join(b"%d\n" % number for number in range(1, 100_001))


async def _exists(path: Path) -> bool:
    return os.access(path, os.F_OK)

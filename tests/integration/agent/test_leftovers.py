"""What a previous life of the agent has left on the host is found and removed; what is another agent's is not."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from tests.fixtures.docker import DockerDaemon
from tests.integration.agent.harness import AgentProcess, until
from tests.integration.agent.test_container import DockerAgent
from tests.integration.agent.test_process import shell

from dstack.agent.executors import job
from dstack.agent.protocol import RUNNING, TaskSpec


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[list[AgentProcess]]:
    """Two on one host."""
    made = [AgentProcess(tmp_path / name) for name in ("one", "other")]
    for agent in made:
        agent.folder.mkdir()
        await agent.start()
    yield made
    for agent in made:
        await agent.clean_up()


async def running(agent: AgentProcess, task: TaskSpec) -> None:
    async def runs() -> bool:
        return [state.status for state in await agent.client.list_tasks() if state.id == task.id] == [RUNNING]

    await agent.client.put_task(task)
    await until(runs)


def processes_of(task: TaskSpec) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DSTACK_AGENT_TASK") == task.id:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wipe(folder: Path) -> None:
    """As who cleans up a host by hand while the agent is down."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


async def test_processes_of_a_wiped_folder_are_ended_and_no_others(agents: list[AgentProcess]) -> None:
    one, other = agents
    user = "nobody" if os.geteuid() == 0 else ""
    fields = {"user": user} if user else {}
    left, kept = shell("setsid sleep 1000 & sleep 1000", **fields), shell("sleep 1000")
    await running(one, left)
    await running(other, kept)
    assert processes_of(left)
    one.end(signal.SIGKILL)
    wipe(one.folder)
    await one.start()

    async def gone() -> bool:
        return not processes_of(left) and not os.path.exists(job.foreign_base(left.id))

    await until(gone)
    assert processes_of(kept)
    other.end(signal.SIGKILL)
    await other.start()
    assert [state.status for state in await other.client.list_tasks()] == [RUNNING]
    assert processes_of(kept)


async def test_files_that_nobody_has_asked_for_are_removed_after_a_day(agents: list[AgentProcess]) -> None:
    agent, old, new = agents[0], shell("true"), shell("true")
    for task in (old, new):
        await agent.client.put_file(task.id, "file", b"content")
    yesterday = time.time() - 86401
    os.utime(agent.folder / "uploads" / old.id, (yesterday, yesterday))
    agent.end(signal.SIGKILL)
    await agent.start()

    async def gone() -> bool:
        return [path.name for path in (agent.folder / "uploads").iterdir()] == [new.id]

    await until(gone)


@pytest.fixture
async def docker_agent(docker_daemon: DockerDaemon, tmp_path: Path) -> AsyncIterator[DockerAgent]:
    agent = DockerAgent(tmp_path / "agent", docker_daemon)
    agent.folder.mkdir()
    await agent.start()
    yield agent
    await agent.clean_up()


@pytest.mark.parametrize("is_installed", [True, False])
async def test_containers_of_a_wiped_folder_are_removed_where_the_host_is_ours(
    docker_agent: DockerAgent, is_installed: bool
) -> None:
    left = docker_agent.shell("sleep 1000")
    await running(docker_agent, left)
    docker_agent.end(signal.SIGKILL)
    wipe(docker_agent.folder)
    if is_installed:
        (docker_agent.folder / "command.json").write_text("{}")
    await docker_agent.start()
    fresh = docker_agent.shell("sleep 1000")
    await running(docker_agent, fresh)

    async def gone() -> bool:
        return not docker_agent.containers(left)

    if is_installed:
        await until(gone)
    else:
        assert docker_agent.containers(left)
        docker_agent.daemon.run("rm", "-f", *docker_agent.containers(left))
    assert docker_agent.containers(fresh)


async def test_a_container_whose_task_is_not_known_is_removed(docker_agent: DockerAgent) -> None:
    left = docker_agent.shell("sleep 1000")
    await running(docker_agent, left)
    docker_agent.end(signal.SIGKILL)
    shutil.rmtree(docker_agent.folder / "tasks" / left.id)
    await docker_agent.start()

    async def gone() -> bool:
        return not docker_agent.containers(left)

    await until(gone)

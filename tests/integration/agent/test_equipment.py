"""What a process finds on its host: mounted folders as links, a Python, the CUDA compiler."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.agent.harness import AgentProcess

from dstack.agent.executors import equipment
from dstack.agent.protocol import EXECUTOR_ERROR, TaskSpec, TaskState

VERSION = "{}.{}".format(*sys.version_info[:2])


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    (tmp_path / "agent").mkdir()
    running = AgentProcess(tmp_path / "agent")
    await running.start()
    yield running
    await running.clean_up()


def shell(text: str, **fields: object) -> TaskSpec:
    data = {"id": str(uuid.uuid4()), "name": "t", "executor": "process", "commands": ["/bin/sh", "-c", text]}
    return TaskSpec.from_json({**data, **fields})


async def run(agent: AgentProcess, text: str, **fields: object) -> tuple[TaskState, str]:
    task = shell(text, **fields)
    await agent.client.put_task(task)
    state = await agent.ended(task.id)
    output = (await agent.output(task.id)).decode()
    await agent.client.delete_task(task.id)
    return state, output


def mount(source: Path, target: Path, *, optional: bool = False) -> dict[str, object]:
    return {"host_path": str(source), "path": str(target), "optional": optional}


async def test_a_mounted_folder_is_there_for_as_long_as_the_task(agent: AgentProcess, tmp_path: Path) -> None:
    source, target = tmp_path / "data", tmp_path / "deep" / "mnt"
    source.mkdir()
    (source / "in").write_text("seen")
    command = f"cat {target}/in; echo written > {target}/out"
    state, output = await run(agent, command, mounts=[mount(source, target)])
    assert (state.exit_status, output) == (0, "seen")
    assert (source / "out").read_text() == "written\n"
    assert not os.path.lexists(target)


async def test_a_link_that_another_task_uses_stays(agent: AgentProcess, tmp_path: Path) -> None:
    source, target = tmp_path / "data", tmp_path / "mnt"
    mounts = [mount(source, target)]
    long = shell(f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done", mounts=mounts)
    assert (await run(agent, "true", mounts=mounts))[0].exit_status == 0
    assert not os.path.lexists(target)
    await agent.client.put_task(long)
    state, _ = await run(agent, f"until [ -d {target} ]; do sleep 0.05; done", mounts=mounts)
    assert state.exit_status == 0
    assert target.is_dir()
    (tmp_path / "go").touch()
    assert (await agent.ended(long.id)).exit_status == 0


async def test_a_folder_mounted_at_its_own_path_is_left_alone(agent: AgentProcess, tmp_path: Path) -> None:
    source = tmp_path / "data"
    state, _ = await run(agent, f"test -d {source}", mounts=[mount(source, source)])
    assert state.exit_status == 0
    assert source.is_dir()


async def test_what_is_there_already_is_not_hidden(agent: AgentProcess, tmp_path: Path) -> None:
    source, target = tmp_path / "data", tmp_path / "mnt"
    target.mkdir()
    state, _ = await run(agent, "true", mounts=[mount(source, target)])
    assert state.reason == EXECUTOR_ERROR
    assert "there is something else on the host" in state.message
    assert "give an image" in state.message


async def test_an_optional_mount_is_done_without(agent: AgentProcess, tmp_path: Path) -> None:
    mounts = [mount(tmp_path / "none", tmp_path / "mnt", optional=True)]
    state, _ = await run(agent, f"test ! -e {tmp_path}/mnt", mounts=mounts)
    assert state.exit_status == 0


async def test_python_of_the_asked_version_in_an_environment_of_the_task(agent: AgentProcess) -> None:
    text = "python -c 'import sys; print(*sys.version_info[:2], sys.prefix)'; echo $DSTACK_VENV_DIR; pip --version"
    state, output = await run(agent, text, python=VERSION)
    assert state.exit_status == 0, (state, output)
    told, folder, pip = output.splitlines()
    major, minor = VERSION.split(".")
    assert told == f"{major} {minor} {folder}"
    assert f"python {VERSION}" in pip


async def test_a_python_that_cannot_be_had_is_said(agent: AgentProcess) -> None:
    state, _ = await run(agent, "true", python="3.1", env={"PATH": "/usr/bin:/bin"})
    assert state.reason == EXECUTOR_ERROR
    assert "`python: 3.1` cannot be had on this host" in state.message
    assert "uv, or give an image" in state.message


async def test_the_cuda_compiler_is_found_or_said_to_be_missing(agent: AgentProcess, tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho compiled\n")
    compiler.chmod(0o755)
    found = {"PATH": f"{compiler.parent}:/usr/bin:/bin"}
    state, output = await run(agent, "nvcc", nvcc=True, env=found)
    assert (state.exit_status, output) == (0, "compiled\n")
    if not os.path.exists("/usr/local/cuda/bin/nvcc"):
        state, _ = await run(agent, "true", nvcc=True, env={"PATH": "/usr/bin:/bin"})
        assert "needs the CUDA toolkit" in state.message


def test_two_tasks_may_make_the_same_link_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, symlink = tmp_path / "data", tmp_path / "mnt", os.symlink

    def be_second(source: str, target: str) -> None:
        monkeypatch.undo()
        symlink(source, target)
        symlink(source, target)

    monkeypatch.setattr(os, "symlink", be_second)
    equipment.link_mounts([mount(source, target)], str(tmp_path / "links"))
    assert target.resolve() == source

"""The agent as a service that a loop keeps running: put there, replaced, taken away, with jobs going on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.agent.harness import until

from dstack import __version__
from dstack.agent import bundle, service
from dstack.agent.protocol import ENDED, RUNNING, TaskSpec
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentClient

pytestmark = pytest.mark.skipif(
    service.uses_systemd(), reason="a unit of this machine's systemd is not the tests' to change"
)
OLDER = "0.0.1"


class Service:
    """Archives of two versions, and the folder in which one of them works."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "agent"
        self.newer, self.older = folder / "newer.pyz", folder / "older.pyz"
        bundle.build(str(self.newer))
        with zipfile.ZipFile(self.newer) as newer, zipfile.ZipFile(self.older, "w") as older:
            for entry in newer.infolist():
                text = newer.read(entry).decode()
                older.writestr(entry, text.replace(__version__, OLDER) if entry.filename == INIT else text)
        self.client = AgentClient.on_socket(str(self.folder / "agent.sock"))

    def act(self, archive: Path, action: str, *, expected: int = 0) -> dict[str, Any]:
        command = [sys.executable, str(archive), action, "--dir", str(self.folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=60)
        assert done.returncode == expected, done.stdout
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    async def runs(self, version: str) -> int:
        """Waits for an agent of that version; returns its pid."""
        found = 0

        async def is_there() -> bool:
            nonlocal found
            try:
                info = await self.client.info()
            except Unreachable:
                return False
            found = info.pid
            return info.agent_version == version

        await until(is_there)
        return found


INIT = "dstack/__init__.py"


@pytest.fixture
async def installed(tmp_path: Path) -> AsyncIterator[Service]:
    made = Service(tmp_path)
    try:
        yield made
    finally:
        await made.client.close()
        made.act(made.newer, "uninstall")


async def test_installing_twice_changes_nothing_the_second_time(installed: Service) -> None:
    first = installed.act(installed.newer, "install")
    assert first == {"socket": str(installed.folder / "agent.sock"), "changed": True, "kept_by": "loop"}
    pid = await installed.runs(__version__)
    assert installed.act(installed.newer, "install") == first | {"changed": False}
    assert await installed.runs(__version__) == pid


async def test_uninstalling_leaves_no_process_and_may_be_repeated(installed: Service) -> None:
    installed.act(installed.newer, "install")
    pid = await installed.runs(__version__)
    for _ in range(2):
        assert installed.act(installed.newer, "uninstall") == {"removed": True}
        assert not service._runs(pid)
        assert not {"agent.pyz", "command.json", "loop.json"} & set(os.listdir(installed.folder))


async def test_an_agent_that_dies_is_started_again(installed: Service) -> None:
    installed.act(installed.newer, "install")
    pid = await installed.runs(__version__)
    os.kill(pid, 9)

    async def is_another() -> bool:
        try:
            return (await installed.client.info()).pid != pid
        except Unreachable:
            return False

    await until(is_another)


async def test_a_job_goes_on_while_its_agent_is_replaced(installed: Service, tmp_path: Path) -> None:
    installed.act(installed.older, "install")
    old_pid = await installed.runs(OLDER)
    flag = tmp_path / "enough"
    script = f"echo before; while [ ! -e {flag} ]; do sleep 0.05; done; echo after"
    spec = TaskSpec(id="t1", executor="process", name="t1", commands=["/bin/sh", "-c", script])
    await installed.client.put_task(spec)

    async def is_running() -> bool:
        return (await installed.client.get_task("t1")).status == RUNNING

    await until(is_running)
    assert installed.act(installed.newer, "install")["changed"] is True
    assert await installed.runs(__version__) != old_pid
    assert (await installed.client.get_task("t1")).status == RUNNING
    flag.touch()

    async def has_ended() -> bool:
        return (await installed.client.get_task("t1")).status == ENDED

    await until(has_ended)
    assert (await installed.client.get_task("t1")).exit_status == 0


async def test_what_hinders_it_is_told(installed: Service) -> None:
    installed.folder.write_text("no folder")
    assert "agent" in installed.act(installed.newer, "install", expected=1)["error"]
    installed.folder.unlink()

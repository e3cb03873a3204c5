"""Nodes of a replica reach each other by SSH: a real agent, real `sshd`, processes and containers."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fixtures.plain_sshd import make_key
from tests.integration.agent.harness import AgentProcess, until
from tests.integration.agent.test_container import DockerAgent
from tests.integration.agent.test_process import shell as process_shell

from dstack.agent import nodes
from dstack.agent.executors.container_log import ContainerLog, note_before
from dstack.agent.logs import LogReader
from dstack.agent.protocol import RUNNING, NodesSsh, StopRequest, TaskSpec, iter_frames

PORT = 10022
KEY_FILE = "node-key"
WAIT = "until [ -e {0} ]; do sleep 0.05; done"


@dataclass
class Replica:
    """Two nodes on one agent, each with an address of its own, and the key that they share."""

    agent: AgentProcess
    image: str | None
    folder: Path
    user: str = ""

    def __post_init__(self) -> None:
        block = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
        self.addresses = [f"{block}.1", f"{block}.2"]
        self.public = make_key(self.folder / "id").strip()

    async def put(self, number: int, text: str) -> TaskSpec:
        ssh = NodesSsh(KEY_FILE, self.public, PORT, self.addresses, self.addresses[number]).to_json()
        given = {"ssh": ssh, "env": {"RANK": str(number), "LINES": "a\nb'"}, "network_mode": "host"}
        if self.user:
            given["user"] = self.user
        if self.image is not None:
            assert isinstance(self.agent, DockerAgent)
            task = self.agent.shell(text, working_dir="/work", image=self.image, **given)
        else:
            task = process_shell(text, **given)
        await self.agent.client.put_file(task.id, KEY_FILE, (self.folder / "id").read_bytes())
        await self.agent.client.put_task(task)
        return task

    async def running(self, task: TaskSpec) -> None:
        async def runs() -> bool:
            (state,) = [state for state in await self.agent.client.list_tasks() if state.id == task.id]
            return state.status == RUNNING

        await until(runs)

    async def stop(self, *tasks: TaskSpec) -> None:
        for task in tasks:
            await self.agent.client.stop_task(task.id, StopRequest(grace_seconds=0))
            await self.agent.ended(task.id)

    def answers(self, number: int) -> bool:
        try:
            socket.create_connection((self.addresses[number], PORT), 1).close()
        except OSError:
            return False
        return True


@pytest.fixture(params=["process", "container"])
async def replica(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Replica]:
    if shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("sshd is not installed")
    image = None
    folder = tmp_path / "agent"
    folder.mkdir()
    if request.param == "container":
        image = request.getfixturevalue("openssh_image")
        running: AgentProcess = DockerAgent(folder, request.getfixturevalue("docker_daemon"))
    else:
        running = AgentProcess(folder)
    await running.start()
    yield Replica(running, image, tmp_path)
    await running.clean_up()
    for task in await _tasks_of(running):
        shutil.rmtree(task, ignore_errors=True)


async def _tasks_of(agent: AgentProcess) -> list[Path]:
    return list((agent.folder / "tasks").iterdir())


@pytest.mark.parametrize("user", ["", "1000"])
async def test_a_node_runs_commands_on_another_as_its_jobs_user(replica: Replica, user: str) -> None:
    if user and (os.geteuid() != 0 or not (replica.image or _has_account(user))):
        pytest.skip("needs root, and an account with that number")
    replica.user = user
    worker = await replica.put(1, "sleep 100")
    await replica.running(worker)
    command = f"ssh {replica.addresses[1]} 'echo $RANK \"$LINES\"; id -u; pwd; cat >&2' </dev/null"
    master = await replica.put(0, f"{command}; pwd; ssh {replica.addresses[0]} echo \\$RANK")
    assert (await replica.agent.ended(master.id)).exit_status == 0, await replica.agent.output(master.id)
    told = (await replica.agent.output(master.id)).decode().splitlines()
    (state,) = [state for state in await replica.agent.client.list_tasks() if state.id == worker.id]
    own = told[4] if replica.image else told[4].replace(master.id, worker.id)
    assert told == ["1 a", "b'", user or str(os.geteuid()), own, told[4], "0"]
    assert own == state.working_dir
    await replica.stop(worker)


async def _ssh(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)


def _has_account(uid: str) -> bool:
    return any(line.split(":")[2] == uid for line in Path("/etc/passwd").read_text().splitlines())


async def test_only_the_replicas_key_opens_it_and_all_ends_with_the_task(replica: Replica) -> None:
    task = await replica.put(0, "sleep 100")
    await replica.running(task)
    make_key(replica.folder / "other")
    ask = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-p", str(PORT)]
    ask += ["-o", f"UserKnownHostsFile={replica.folder}/known", "-o", "IdentitiesOnly=yes", "-i"]
    where = [f"root@{replica.addresses[0]}" if replica.image else replica.addresses[0], "echo in"]
    other = await _ssh([*ask, str(replica.folder / "other"), *where])
    assert b"Permission denied (publickey)" in other.stderr
    right = await _ssh([*ask, str(replica.folder / "id"), *where])
    assert right.stdout == b"in\n", right.stderr
    assert replica.public.split()[1] in (replica.folder / "known").read_text()
    folder = replica.agent.folder / "tasks" / task.id
    assert not (folder / "files" / KEY_FILE).exists()
    assert "PRIVATE KEY" not in (folder / "spec.json").read_text()
    await replica.stop(task)
    assert not replica.answers(0)


async def test_a_killed_supervisor_takes_the_door_with_it(replica: Replica) -> None:
    if replica.image:
        pytest.skip("a container is one whole")
    task = await replica.put(0, "sleep 100")
    await replica.running(task)
    supervisor = (replica.agent.folder / "tasks" / task.id / "supervisor.json").read_text()
    os.kill(int("".join(filter(str.isdigit, supervisor.split(",")[0]))), signal.SIGKILL)
    await replica.agent.ended(task.id)

    async def closed() -> bool:
        return not replica.answers(0)

    await until(closed)


async def test_what_is_missing_is_told_in_the_log_and_the_job_goes_on(replica: Replica) -> None:
    if replica.image:
        replica.image = "busybox-test:1"
        why = "the image has no sshd; install openssh-server in it if the nodes are to use ssh, as mpirun does"
        task = await replica.put(0, "echo done")
        assert await _output(replica, task) == [_without(why), "done"]
        return
    with socket.create_server((replica.addresses[0], PORT)):
        task = await replica.put(0, "echo done")
        said, done = await _output(replica, task)
    assert done == "done"
    assert said.startswith(_without(" ").strip())
    assert "Address already in use" in said


def _without(why: str) -> str:
    return f"ssh between the nodes of this run does not work here: {why or 'no reason was told'}"


async def _output(replica: Replica, task: TaskSpec) -> list[str]:
    assert (await replica.agent.ended(task.id)).exit_status == 0
    return (await replica.agent.output(task.id)).decode().splitlines()


async def test_an_agent_that_is_killed_while_it_starts_a_node_opens_one_door(replica: Replica) -> None:
    task = await replica.put(0, f"ssh {replica.addresses[0]} echo again; sleep 100")
    await until(lambda: _is_started(replica, task))
    replica.agent.end()
    await replica.agent.start()
    await replica.running(task)

    async def said() -> bool:
        state = next(state for state in await replica.agent.client.list_tasks() if state.id == task.id)
        return state.log_end > 0

    await until(said)
    await replica.stop(task)
    assert await replica.agent.output(task.id) == b"again\n"


async def test_a_container_may_be_opened_again(replica: Replica) -> None:
    if not isinstance(replica.agent, DockerAgent):
        pytest.skip("a process is started once")
    task = await replica.put(0, f"until ssh {replica.addresses[0]} [ -e /again ]; do sleep 0.1; done; echo again")
    await replica.running(task)
    assert task.ssh
    script = nodes.command(task.ssh, nodes.FOLDER, nodes.CONTAINER)
    (container,) = replica.agent.containers(task)
    for text in (script, "touch /again"):  # as an agent does that did not see the first one through
        replica.agent.daemon.run("exec", container, "sh", "-c", text)
    assert await _output(replica, task) == ["again"]


async def _is_started(replica: Replica, task: TaskSpec) -> bool:
    return replica.image is None or bool(replica.agent.containers(task))  # type: ignore[attr-defined]


def test_a_note_before_a_containers_output_is_written_once(tmp_path: Path) -> None:
    for _ in range(2):
        note_before(str(tmp_path), 1, "note\n")
    for _ in range(2):  # the second one as after a restart of the agent
        log = ContainerLog(str(tmp_path))
        log.feed(b"2026-01-02T03:04:05.5Z first\n2026-01-02T03:04:05.6Z second\n")
        log.write()
        log.close()
    frames = iter_frames(LogReader(str(tmp_path / "logs"), 0).read())
    assert [payload for _, payload, _ in frames] == [b"note\n", b"first\n", b"second\n"]

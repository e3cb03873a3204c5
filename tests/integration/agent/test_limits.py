"""Limits on the CPU and memory of processes, by this machine's kernel: control groups of version 1 or 2."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from tests.fixtures.systemd_host import SystemdHost
from tests.integration.agent.harness import AgentProcess, until

from dstack.agent import bundle
from dstack.agent.executors import cgroups
from dstack.agent.protocol import RUNNING, ExecRequest, TaskSpec, TaskState
from dstack.core.errors import Unreachable

MIB = 1024**2
HOG = 'held = bytearray(b"x") * 200 * 2**20; print(len(held))'
OWN_GROUPS = "cat /proc/self/cgroup"
WAIT = "while [ ! -e go ]; do sleep 0.02; done;"


def task(text: str, *, memory_mib: int = 0, cpu: float = 0) -> TaskSpec:
    return TaskSpec(
        id=str(uuid.uuid4()),
        name="t",
        executor="process",
        commands=["/bin/sh", "-c", text],
        cpu=cpu,
        memory_bytes=memory_mib * MIB,
    )


def hog(before: str = "", python: str = sys.executable) -> str:
    """A script that takes 200 MiB."""
    return f"{before} {python} -c '{HOG}'"


class Host(AgentProcess):
    """Its agent, and the groups of its tasks."""

    def groups(self, spec: TaskSpec) -> list[Path]:
        record = self.folder / "tasks" / spec.id / cgroups.RECORD
        return [Path(path) for path in json.loads(record.read_text())["groups"]] if record.exists() else []

    async def run(self, spec: TaskSpec) -> list[Path]:
        """Until it runs; its groups."""
        await self.client.put_task(spec)

        async def is_running() -> bool:
            return (await self.client.get_task(spec.id)).status == RUNNING

        await until(is_running)
        return self.groups(spec)

    async def let_go(self, spec: TaskSpec) -> TaskState:
        """Tells the task that waits for `go` to go on; how it ended."""
        (self.folder / "tasks" / spec.id / "work" / "go").touch()
        return await self.ended(spec.id)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        running = Host(Path(folder))
        await running.start()
        try:
            if why := (await running.client.info()).limits_error:
                pytest.skip(why)
            yield running
        finally:
            await running.clean_up()


async def test_a_job_that_takes_too_much_memory_is_ended_and_says_so(host: Host) -> None:
    spec = task(hog(WAIT), memory_mib=64)
    groups = await host.run(spec)
    assert groups
    assert all(group.is_dir() for group in groups)
    state = await host.let_go(spec)
    assert (state.reason, state.exit_status) == ("container_exited_with_error", 137)
    assert state.message == "killed because it used more memory than it may (64MB)"
    await until(lambda: are_gone(groups))
    assert host.groups(spec) == []


async def test_within_its_limits_a_job_runs_as_any_other(host: Host) -> None:
    spec = task(hog(), memory_mib=1024, cpu=1)
    await host.client.put_task(spec)
    state = await host.ended(spec.id)
    assert (state.reason, state.exit_status, state.message) == ("done_by_runner", 0, "")
    assert await host.output(spec.id) == b"209715200\n"


async def test_a_job_that_gets_over_the_end_of_a_part_of_it_is_done(host: Host) -> None:
    spec = task(hog() + " || true", memory_mib=64)
    await host.client.put_task(spec)
    assert (await host.ended(spec.id)).reason == "done_by_runner"


async def test_a_job_gets_no_more_cores_than_its_limit(host: Host) -> None:
    spec = task("while :; do :; done", cpu=0.1)
    groups = await host.run(spec)
    stat = next(group / "cpu.stat" for group in groups if (group / "cpu.stat").exists())

    async def was_held_back() -> bool:
        counts = dict(line.split() for line in stat.read_text().splitlines())
        return int(counts["nr_throttled"]) >= 3

    await until(was_held_back)
    names = {"cpu.max": "10000 100000", "cpu.cfs_quota_us": "10000"}
    found = [(stat.parent / name).read_text().strip() for name in names if (stat.parent / name).exists()]
    assert found[0] in names.values()


async def test_programs_beside_the_job_share_its_limits(host: Host) -> None:
    spec = task(f"{OWN_GROUPS} > of-the-job; sleep 1000", memory_mib=64, cpu=0.5)
    await host.run(spec)
    with contextlib.closing(await host.client.exec(spec.id, ExecRequest(command=OWN_GROUPS))) as session:
        beside = b"".join([data async for _, data in session.output()])
    assert spec.id.encode() in beside
    job = host.folder / "tasks" / spec.id / "work" / "of-the-job"
    await until(lambda: has(job, beside))


async def test_a_job_without_limits_has_no_groups(host: Host) -> None:
    assert await host.run(task("sleep 1000")) == []


async def test_the_limits_outlive_the_agent(host: Host) -> None:
    spec = task(hog(WAIT), memory_mib=64, cpu=1)
    groups = await host.run(spec)
    for number in (signal.SIGKILL, signal.SIGTERM):
        host.end(number)
        await host.start()
        assert (await host.client.get_task(spec.id)).status == RUNNING
        assert all(group.is_dir() for group in groups)
    state = await host.let_go(spec)
    assert state.message == "killed because it used more memory than it may (64MB)"
    await until(lambda: are_gone(groups))


async def test_what_a_dead_agent_and_supervisor_leave_is_removed_by_the_next(host: Host) -> None:
    spec = task("trap '' INT TERM HUP; env -i setsid sleep 1000 & sleep 1000", memory_mib=64)
    groups = await host.run(spec)
    known = json.loads((host.folder / "tasks" / spec.id / "supervisor.json").read_text())
    host.end()
    os.kill(known["pid"], signal.SIGKILL)
    await host.start()
    assert (await host.ended(spec.id)).reason == "executor_error"
    await until(lambda: are_gone(groups))


async def test_nothing_is_left_when_the_last_task_has_ended(host: Host) -> None:
    """Though tasks begin and end all the time in the group of the agent."""
    specs = [task("exit 0", memory_mib=64, cpu=1) for _ in range(8)]
    waiting = task(WAIT, memory_mib=64)
    parents = {group.parent for group in await host.run(waiting)}
    await host.let_go(waiting)
    for spec in specs:
        await host.client.put_task(spec)
    states = [await host.ended(spec.id) for spec in specs]
    assert [(state.reason, state.message) for state in states] == [("done_by_runner", "")] * 8
    await until(lambda: are_gone(sorted(parents)))


async def test_an_agent_that_is_not_root_runs_the_job_without_limits_and_says_so() -> None:
    python = shutil.which("python3", path="/usr/bin")  # one that others than the tests' user may run too
    if os.geteuid() != 0 or python is None:
        pytest.skip("needs root, to run an agent that is not, and a Python in /usr/bin")

    class NobodysHost(Host):
        def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
            with open(self.folder / "agent.err", "ab") as errors:
                options = {"env": environment, "stdout": errors, "stderr": errors}
                nobody = {"user": 65534, "group": 65534, "extra_groups": []}
                return subprocess.Popen([python, *command[1:]], **options, **nobody)  # type: ignore[call-overload,no-any-return]

    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        os.chown(folder, 65534, 65534)
        host = NobodysHost(Path(folder))
        await host.start()
        spec = task("echo done", memory_mib=64, cpu=1)
        await host.client.put_task(spec)
        assert (await host.ended(spec.id)).reason == "done_by_runner"
        told = (await host.client.info()).limits_error
        assert "no limits on the memory of processes: the agent cannot make control groups in /sys" in told
        assert told in (host.folder / "agent.err").read_text()
        await host.clean_up()


async def test_systemd_starts_the_agent_again_while_limited_jobs_run(
    systemd_host: SystemdHost, tmp_path: Path
) -> None:
    bundle.build(str(tmp_path / "agent.pyz"))
    systemd_host.daemon.run("cp", str(tmp_path / "agent.pyz"), f"{systemd_host.container}:/root/agent.pyz")
    systemd_host.run("python3 /root/agent.pyz install --dir /opt/agent")
    inside = Path(
        "/proc", systemd_host.daemon.run("inspect", "-f", "{{.State.Pid}}", systemd_host.container), "root"
    )
    host = Host(inside / "opt/agent")
    assert (await host.client.info()).limits_error == ""
    spec = task(hog(WAIT, "python3"), memory_mib=64, cpu=1)
    groups = [inside / group.relative_to("/") for group in await host.run(spec)]
    for command in ("restart", "kill --signal=KILL --kill-who=main"):
        before = (await host.client.info()).pid
        systemd_host.run(f"systemctl {command} dstack-agent")
        await until(partial(is_another, host, before))
        assert (await host.client.get_task(spec.id)).status == RUNNING
        assert groups
        assert all(group.is_dir() for group in groups)
    state = await host.let_go(spec)
    assert state.message == "killed because it used more memory than it may (64MB)"
    await until(lambda: are_gone(groups))
    await host.client.close()


async def is_another(host: Host, pid: int) -> bool:
    try:
        return (await host.client.info()).pid != pid
    except Unreachable:
        return False


async def are_gone(groups: list[Path]) -> bool:
    return not any(group.exists() for group in groups)


async def has(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content

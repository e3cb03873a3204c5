"""The container executor, with a real agent and a real Docker daemon."""

from __future__ import annotations

import asyncio
import io
import tarfile
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fixtures.docker import DockerDaemon
from tests.integration.agent.harness import AgentProcess, until

from dstack.agent.protocol import ENDED, RUNNING, StopRequest, TaskSpec, TaskState, iter_frames
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentRefused


class DockerAgent(AgentProcess):
    def __init__(self, folder: Path, daemon: DockerDaemon) -> None:
        super().__init__(folder)
        self.daemon = daemon

    async def start(self, *arguments: str) -> None:
        await super().start("--docker-socket", str(self.daemon.socket), *arguments)

    def shell(self, text: str, **fields: object) -> TaskSpec:
        data = {"id": str(uuid.uuid4()), "name": "t", "executor": "container", "commands": ["/bin/sh", "-c", text]}
        return TaskSpec.from_json({**data, "image": self.daemon.image, **fields})

    def containers(self, task: TaskSpec) -> list[str]:
        return self.daemon.run("ps", "-aq", "--filter", f"label=dstack.task={task.id}").split()

    async def running(self, task: TaskSpec) -> TaskState:
        async for event in self.client.events():
            if event.task and event.task["id"] == task.id and event.task["status"] in (RUNNING, ENDED):
                assert event.task["status"] == RUNNING, event.task
                return TaskState.from_json(event.task)
        raise AssertionError("the event stream ended")


@pytest.fixture
async def agent(docker_daemon: DockerDaemon, tmp_path: Path) -> AsyncIterator[DockerAgent]:
    running = DockerAgent(tmp_path, docker_daemon)
    known = set(docker_daemon.run("ps", "-aq").split())  # what other tests left on the daemon that all share
    await running.start()
    yield running
    if running.process is None or running.process.poll() is not None:
        await running.start()
    for task in await running.client.list_tasks():
        await running.client.stop_task(task.id, StopRequest(grace_seconds=0))
        await running.ended(task.id)
        await running.client.delete_task(task.id)
    await running.clean_up()
    assert set(running.daemon.run("ps", "-aq", "--filter", "label=dstack.agent").split()) <= known


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 7", 7), ("exit 137", 137)])
async def test_the_end_is_told_exactly(agent: DockerAgent, command: str, status: int) -> None:
    task = agent.shell(f"echo hello; {command}")
    await agent.client.put_task(task)
    state = await agent.ended(task.id)
    assert state.exit_status == status, state
    assert state.reason == ("container_exited_with_error" if status else "done_by_runner")
    assert await agent.output(task.id) == b"hello\n"


async def test_long_lines_and_the_last_one_without_an_end_are_whole(agent: DockerAgent) -> None:
    script = "for n in 16383 16384 16385 40000; do head -c $n /dev/zero | tr '\\0' x; echo; done; printf rest"
    task = agent.shell(script)
    await agent.client.put_task(task)
    await agent.ended(task.id)
    expected = b"".join(b"x" * size + b"\n" for size in (16383, 16384, 16385, 40000)) + b"rest"
    assert await agent.output(task.id) == expected


async def test_a_killed_agent_neither_loses_nor_repeats_output(agent: DockerAgent) -> None:
    task = agent.shell("seq 1 200000; sleep 0.2; seq 200001 201000")
    await agent.client.put_task(task)
    await agent.running(task)
    frames, offset, kills = [], 0, 0
    while True:
        try:
            async for chunk in agent.client.follow_logs(task.id, offset):
                frames.append(chunk.frames)
                offset = chunk.end_offset
                if kills < 3 and offset > 500_000 * (kills + 1):
                    kills += 1
                    agent.end()
                    await agent.start()
            break
        except Unreachable:
            continue
    output = b"".join(payload for _, payload, _ in iter_frames(b"".join(frames)))
    assert output == b"".join(b"%d\n" % number for number in range(1, 201_001))
    assert (await agent.ended(task.id)).exit_status == 0
    assert len(agent.containers(task)) == 1


async def test_a_kill_at_any_moment_of_the_start_makes_one_container(agent: DockerAgent) -> None:
    for delay in (0.0, 0.01, 0.03, 0.1, 0.3):
        task = agent.shell("echo started; sleep 1000")
        await agent.client.put_task(task)
        await asyncio.sleep(delay)
        agent.end()
        await agent.start()
        await agent.running(task)
        assert len(agent.containers(task)) == 1
        first = await anext(agent.client.follow_logs(task.id))
        assert [payload for _, payload, _ in iter_frames(first.frames)] == [b"started\n"]


async def test_stop_interrupts_then_kills(agent: DockerAgent) -> None:
    task = agent.shell("trap '' INT; echo up; sleep 1000", stop_grace_seconds=0.2)
    await agent.client.put_task(task)
    await agent.running(task)
    await agent.client.stop_task(task.id, StopRequest("terminated_by_user", "enough"))
    state = await agent.ended(task.id)
    assert (state.reason, state.message, state.exit_status) == ("terminated_by_user", "enough", 137)


async def test_max_duration_ends_the_container(agent: DockerAgent) -> None:
    task = agent.shell("sleep 1000", max_duration_seconds=1, stop_grace_seconds=0)
    await agent.client.put_task(task)
    assert (await agent.ended(task.id)).reason == "max_duration_exceeded"


async def test_ports_are_published_on_loopback(agent: DockerAgent) -> None:
    task = agent.shell("cd /tmp; echo page > index.html; httpd -f -p 8000", ports=[8000])
    await agent.client.put_task(task)
    state = await agent.running(task)
    assert state.ports[0]["container"] == 8000

    async def answers() -> bool:
        try:
            url = "http://127.0.0.1:{}/".format(state.ports[0]["host"])
            page: bytes = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())
            return page == b"page\n"
        except (urllib.error.URLError, OSError):
            return False

    await until(answers)


async def test_everything_of_the_specification_reaches_the_container(agent: DockerAgent, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("mounted")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("hello.txt")
        entry.size = 8
        tar.addfile(entry, io.BytesIO(b"uploaded"))
    task = agent.shell(
        "id -un; pwd; echo $GIVEN; cat /mnt/file; echo; cat code/hello.txt; echo; df -k /dev/shm | tail -1",
        user="user", working_dir="/work", env={"GIVEN": "here"}, shm_size_bytes=8 * 1024**2, privileged=True,
        memory_bytes=64 * 1024**2, cpu=0.5, files=[{"name": "code", "path": "code/"}],
        mounts=[{"host_path": str(tmp_path / "shared"), "path": "/mnt"},
                {"host_path": "/no/such", "path": "/none", "optional": True}],
    )  # fmt: skip
    await agent.client.put_file(task.id, "code", archive.getvalue())
    await agent.client.put_task(task)
    await agent.ended(task.id)
    lines = (await agent.output(task.id)).decode().splitlines()
    assert lines[:5] == ["user", "/work", "here", "mounted", "uploaded"]
    assert "8192" in lines[5]


async def test_too_much_memory_is_told(agent: DockerAgent) -> None:
    task = agent.shell("x=a; while true; do x=$x$x; done", memory_bytes=16 * 1024**2)
    await agent.client.put_task(task)
    state = await agent.ended(task.id)
    assert state.exit_status == 137
    assert state.message == "killed because it used more memory than it may (16MB)"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": "127.0.0.1:1/no/such:1"}, "the registry 127.0.0.1:1 cannot be reached from this host"),
        ({"commands": ["/no/such"]}, "no such file"),
        ({"gpu": 1}, "the task needs 1 GPUs, but 0 of the host's 0 are free"),
        ({"image": None}, "the task names no image"),
    ],
)
async def test_what_cannot_start_says_why(agent: DockerAgent, fields: dict[str, object], words: str) -> None:
    task = agent.shell("exit 0", **fields)
    await agent.client.put_task(task)
    state = await agent.ended(task.id)
    assert state.reason == "creating_container_error"
    assert words in state.message
    assert agent.containers(task) == []


async def test_without_docker_the_agent_says_so(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    await agent.start("--docker-socket", str(tmp_path / "none.sock"))
    info = await agent.client.info()
    assert info.executors == ["process"]
    assert info.container_error == f"there is no Docker on this host (no socket at {tmp_path / 'none.sock'})"
    with pytest.raises(AgentRefused, match="there is no Docker on this host"):
        await agent.client.put_task(TaskSpec("x", "x", "container", [], image="busybox"))
    await agent.clean_up()


async def test_metrics_are_those_of_the_container(agent: DockerAgent) -> None:
    task = agent.shell("while true; do :; done")
    await agent.client.put_task(task)
    await agent.running(task)
    first = await agent.client.task_metrics(task.id)
    assert first.memory_usage_bytes >= first.memory_working_set_bytes > 0

    async def has_advanced() -> bool:
        return (await agent.client.task_metrics(task.id)).cpu_usage_micro > first.cpu_usage_micro

    await until(has_advanced)


async def test_the_limits_of_a_container_are_the_kernels(agent: DockerAgent) -> None:
    text = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null || { c=/sys/fs/cgroup; cat"
    text += " $c/memory/memory.limit_in_bytes $c/cpu/cpu.cfs_quota_us; }; df -k /dev/shm | tail -1"
    task = agent.shell(text, memory_bytes=64 * 2**20, cpu=0.5, shm_size_bytes=2**20)
    await agent.client.put_task(task)
    await agent.ended(task.id)
    memory, cpu, shm = (await agent.output(task.id)).decode().splitlines()
    assert memory == str(64 * 2**20)
    assert cpu.split()[0] == "50000"
    assert shm.split()[1] == "1024"


async def test_commands_take_the_place_of_the_images_entrypoint(agent: DockerAgent) -> None:
    """Which runs where there are none."""
    image = "with-entrypoint:test"
    change = """ENTRYPOINT ["/bin/echo", "entrypoint"]"""
    source = agent.daemon.run("create", agent.daemon.image, "/bin/true").strip()
    try:
        agent.daemon.run("commit", "-c", change, "-c", """CMD ["command"]""", source, image)
    finally:
        agent.daemon.run("rm", source)
    for commands, said in ((["/bin/sh", "-c", "echo own"], b"own\n"), ([], b"entrypoint command\n")):
        task = TaskSpec.from_json({**agent.shell("").to_json(), "image": image, "commands": commands})
        await agent.client.put_task(task)
        await agent.ended(task.id)
        assert await agent.output(task.id) == said

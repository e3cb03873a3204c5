"""The process executor, with a real agent as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import pytest
from tests.integration.agent.harness import SOURCES, AgentProcess, until

from dstack.agent.executors.supervisor import GATHER_BYTES
from dstack.agent.protocol import ENDED, MAX_FRAME_BYTES, RUNNING, StopRequest, TaskSpec, iter_frames
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentRefused


def shell(text: str, **fields: object) -> TaskSpec:
    data = {"id": str(uuid.uuid4()), "name": "t", "executor": "process", "commands": ["/bin/sh", "-c", text]}
    return TaskSpec.from_json({**data, **fields})


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agent-") as path:
        deep = Path(path, "d" * 120)  # longer than a Unix socket's address may be
        deep.mkdir()
        yield deep


@pytest.fixture
async def agent(folder: Path) -> AsyncIterator[AgentProcess]:
    running = AgentProcess(folder)
    await running.start()
    yield running
    await running.clean_up()


@pytest.mark.parametrize(
    ("command", "reason", "status"),
    [("exit 0", "done_by_runner", 0), ("exit 7", "container_exited_with_error", 7),
     ("kill -9 $$", "container_exited_with_error", 137)],
)  # fmt: skip
async def test_the_end_is_told_exactly(agent: AgentProcess, command: str, reason: str, status: int) -> None:
    task = shell(f"echo hello; {command}")
    await agent.client.put_task(task)
    state = await agent.ended(task.id)
    assert (state.reason, state.exit_status) == (reason, status)
    assert await agent.output(task.id) == b"hello\n"


async def test_a_command_that_cannot_be_run_says_so(agent: AgentProcess) -> None:
    task = shell("", commands=["/no/such/program"])
    await agent.client.put_task(task)
    state = await agent.ended(task.id)
    assert state.reason == "executor_error"
    assert state.message == "the command '/no/such/program' cannot be run: No such file or directory"


async def test_a_job_does_not_see_the_environment_of_the_agent(agent: AgentProcess) -> None:
    task = shell("echo $AGENT_SECRET-$GIVEN; pwd", env={"GIVEN": "here"}, working_dir="a/b")
    await agent.client.put_task(task)
    lines = (await agent.output(task.id)).decode().split()
    assert lines == ["-here", str(agent.folder / "tasks" / task.id / "work" / "a" / "b")]


async def test_stop_interrupts_then_kills_and_leaves_no_process(agent: AgentProcess) -> None:
    task = shell("trap '' INT; setsid sleep 1000 & echo $!; exec sleep 1000", stop_grace_seconds=0.2)
    await agent.client.put_task(task)
    first = await anext(agent.client.follow_logs(task.id))
    left = int(next(iter_frames(first.frames))[1])
    await agent.client.stop_task(task.id, StopRequest("terminated_by_user", "enough"))
    state = await agent.ended(task.id)
    assert (state.reason, state.message) == ("terminated_by_user", "enough")
    assert await _is_gone(left)


async def test_max_duration_ends_the_job(agent: AgentProcess) -> None:
    task = shell("sleep 1000", max_duration_seconds=1)
    await agent.client.put_task(task)
    assert (await agent.ended(task.id)).reason == "max_duration_exceeded"


async def test_a_stop_before_the_put_starts_nothing(agent: AgentProcess) -> None:
    task = shell("touch started")
    await agent.client.stop_task(task.id)
    assert (await agent.client.put_task(task)).status == ENDED
    assert not (agent.folder / "tasks" / task.id / "work").exists()


async def test_another_spec_under_the_same_id_is_refused(agent: AgentProcess) -> None:
    task = shell("exit 0")
    await agent.client.put_task(task)
    await agent.client.put_task(task)
    with pytest.raises(AgentRefused, match="another specification"):
        await agent.client.put_task(shell("exit 1", id=task.id))


async def test_a_killed_agent_takes_its_jobs_over_again(agent: AgentProcess) -> None:
    task = shell("echo one; while [ ! -e go ]; do sleep 0.02; done; echo two; exit 3")
    await agent.client.put_task(task)
    before = await anext(agent.client.follow_logs(task.id))
    agent.end()
    await agent.start()
    state = await agent.client.get_task(task.id)
    assert state.status == RUNNING
    assert state.working_dir
    (agent.folder / "tasks" / task.id / "work" / "go").touch()
    assert (await agent.ended(task.id)).exit_status == 3
    later = [chunk.frames async for chunk in agent.client.follow_logs(task.id, before.end_offset)]
    assert b"".join(payload for _, payload, _ in iter_frames(b"".join(later))) == b"two\n"


async def test_a_job_that_ends_while_no_agent_runs_is_known_afterwards(agent: AgentProcess) -> None:
    task = shell("while [ ! -e go ]; do sleep 0.02; done; exit 4")
    state = await agent.client.put_task(task)
    agent.end()
    folder = agent.folder / "tasks" / state.id
    await until(lambda: _exists(folder / "work"))
    (folder / "work" / "go").touch()
    await until(lambda: _exists(folder / "exit.json"))
    await agent.start()
    assert (await agent.client.get_task(task.id)).exit_status == 4


async def test_a_killed_supervisor_takes_its_job_with_it(agent: AgentProcess) -> None:
    task = shell("setsid sleep 1000 & echo $!; sleep 1000")
    await agent.client.put_task(task)
    first = await anext(agent.client.follow_logs(task.id))
    left = int(next(iter_frames(first.frames))[1])
    record = (agent.folder / "tasks" / task.id / "supervisor.json").read_text()
    os.kill(int(record.split(":")[1].split(",")[0]), signal.SIGKILL)
    state = await agent.ended(task.id)
    assert state.reason == "executor_error"
    assert "supervisor" in state.message
    await until(lambda: _is_gone(left))


async def test_a_million_lines_survive_the_death_of_the_agent(agent: AgentProcess) -> None:
    task = shell("i=0; seq 1000000")
    await agent.client.put_task(task)
    frames, offset, killed = [], 0, False
    while True:
        with contextlib.suppress(Unreachable):
            async for chunk in agent.client.follow_logs(task.id, offset):
                frames.append(chunk.frames)
                offset = chunk.end_offset
                if not killed and offset > 1_000_000:
                    killed = True
                    agent.end()
                    await agent.start()
            break
    output = b"".join(payload for _, payload, _ in iter_frames(b"".join(frames)))
    assert output == b"".join(b"%d\n" % number for number in range(1, 1_000_001))


async def test_lines_written_one_by_one_travel_in_few_frames_and_whole(agent: AgentProcess) -> None:
    task = shell("python3 -c 'import os\nfor number in range(50000): os.write(1, b\"%d\\n\" % number)'")
    await agent.client.put_task(task)
    chunks = [chunk.frames async for chunk in agent.client.follow_logs(task.id)]
    frames = [(at, payload) for at, payload, _ in iter_frames(b"".join(chunks))]
    assert b"".join(payload for _, payload in frames) == b"".join(b"%d\n" % number for number in range(50000))
    cut = [at - before for (before, _), (at, payload) in pairwise(frames) if not payload.endswith(b"\n")]
    assert all(waited >= 16000 for waited in cut)  # a line whose end takes so long to come is not held back
    moments = [list(group) for _, group in groupby(frames, key=itemgetter(0))]
    assert all(len(payload) > MAX_FRAME_BYTES - 10 for moment in moments for _, payload in moment[:-1])
    while_running = moments[:-1]  # the end of a job waits for nothing
    hasty = [after for before, after in pairwise(while_running) if after[0][0] - before[0][0] < 8000]
    assert all(sum(len(payload) for _, payload in moment) > GATHER_BYTES - 10 for moment in hasty)


async def test_output_waits_while_too_much_is_not_acknowledged(folder: Path) -> None:
    agent = AgentProcess(folder)
    await agent.start("--log-limit-bytes", "100000")
    task = shell("seq 200000")
    await agent.client.put_task(task)
    size = 0
    async for chunk in agent.client.follow_logs(task.id):
        size += len(chunk.frames)
        await agent.client.acknowledge_logs(task.id, chunk.end_offset)
    assert (await agent.ended(task.id)).exit_status == 0
    assert size > 1_000_000
    await agent.clean_up()


async def test_the_agent_does_without_openssl(agent: AgentProcess) -> None:
    """It costs 5 MB and nothing needs it: who imports `ssl` or `hashlib` does so where it is used."""
    await agent.client.put_task(shell("true"))
    libraries = Path(f"/proc/{agent.pid}/maps").read_text()
    assert "libpython" in libraries or "python" in libraries
    assert "libcrypto" not in libraries
    assert "libssl" not in libraries


async def test_a_second_agent_is_kept_out(agent: AgentProcess) -> None:
    command = [sys.executable, "-m", "dstack.agent", "--dir", str(agent.folder)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 3
    assert f"another agent (process {agent.pid}) works in {agent.folder}" in errors.decode()


async def test_an_idle_agent_ends_by_itself(folder: Path) -> None:
    agent = AgentProcess(folder)
    await agent.start("--exit-when-idle", "0.2")
    await agent.client.close()
    assert agent.process
    assert await asyncio.to_thread(agent.process.wait, 20) == 0


async def _exists(path: Path) -> bool:
    return os.access(path, os.F_OK)


async def _is_gone(pid: int) -> bool:
    return not os.access(f"/proc/{pid}", os.F_OK)


async def test_a_kill_at_any_moment_of_the_start_starts_every_job_once(agent: AgentProcess) -> None:
    starts = agent.folder / "starts"
    tasks = [shell(f"echo {number} >> {starts}") for number in range(12)]
    for number, task in enumerate(tasks):
        putting = asyncio.ensure_future(agent.client.put_task(task))
        await asyncio.sleep(0.0015 * number)
        agent.end()
        await asyncio.gather(putting, return_exceptions=True)
        await agent.start()
        await agent.client.put_task(task)
        assert (await agent.ended(task.id)).reason == "done_by_runner"
    assert starts.read_text().split() == [str(number) for number in range(12)]


async def test_metrics_sum_over_all_processes_of_a_task(agent: AgentProcess) -> None:
    """Also those that have ended, and those whose parent has ended."""
    burn = f'{sys.executable} -c "x = bytearray(50_000_000)\nwhile True: pass"'
    task = shell(f"{sys.executable} -c 'for _ in range(3_000_000): pass'; ({burn} &) ; sleep 1000")
    with pytest.raises(AgentRefused, match="there is no task"):
        await agent.client.task_metrics(task.id)
    await agent.client.put_task(task)

    async def has_grown() -> bool:
        try:
            measured = await agent.client.task_metrics(task.id)
        except AgentRefused:  # it has yet to start
            return False
        return measured.memory_working_set_bytes > 50_000_000 and measured.cpu_usage_micro > 500_000

    await until(has_grown)
    first = await agent.client.task_metrics(task.id)
    assert first.memory_usage_bytes >= first.memory_working_set_bytes
    assert first.gpus == []

    async def has_advanced() -> bool:
        later = await agent.client.task_metrics(task.id)
        return later.cpu_usage_micro > first.cpu_usage_micro and later.timestamp_micro > first.timestamp_micro

    await until(has_advanced)
    await agent.client.stop_task(task.id, StopRequest(grace_seconds=0))
    await agent.ended(task.id)
    with pytest.raises(AgentRefused, match="the task is ended"):
        await agent.client.task_metrics(task.id)

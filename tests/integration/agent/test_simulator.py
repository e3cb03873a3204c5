"""The simulated cloud, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dstack.agent.protocol import ENDED, RUNNING, StopRequest, TaskSpec, TaskState, iter_frames
from dstack.server.hosts.agent_client import AgentClient

SOURCES = Path(__file__).parents[3] / "src"


class Cloud:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        command = [sys.executable, "-m", "dstack.agent.simulator", "--dir", str(self.folder)]
        environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
        self._spawn(command, environment)
        for _ in range(1000):
            try:
                await self.call("GET", "/instances")
                return
            except OSError:
                await asyncio.sleep(0.01)
        raise AssertionError("the simulator does not answer")

    def _spawn(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(command, env=environment)

    def end(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)
        self.process.wait(20)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "cloud.sock"))
        data = json.dumps(body or {}).encode()
        head = f"{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        answer = await reader.read()
        writer.close()
        if not answer:
            return 0, None
        status_line, _, text = answer.partition(b"\r\n\r\n")
        return int(status_line.split()[1]), json.loads(text or b"null")

    async def host(self, name: str) -> AgentClient:
        status, _ = await self.call("PUT", f"/instances/{name}", {"cpus": 8})
        assert status == 200
        return AgentClient.on_socket(str(self.folder / "instances" / f"{name}.sock"))


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    running = Cloud(tmp_path / "c")
    await running.start()
    yield running
    running.end(signal.SIGTERM)


def simulated(**simulation: object) -> TaskSpec:
    return TaskSpec(str(uuid.uuid4()), "t", "simulated", [], simulation=simulation)


async def ended(client: AgentClient, task_id: str) -> TaskState:
    async for event in client.events():
        if event.task and event.task["id"] == task_id and event.task["status"] == ENDED:
            return TaskState.from_json(event.task)
    raise AssertionError("the event stream ended")


async def test_a_simulated_task_runs_prints_and_ends(cloud: Cloud) -> None:
    client = await cloud.host("one")
    assert (await client.info()).host["cpus"] == 8
    task = simulated(log_lines=2, exit_status=3)
    await client.put_task(task)
    state = await ended(client, task.id)
    assert (state.reason, state.exit_status) == ("container_exited_with_error", 3)
    chunks = [chunk.frames async for chunk in client.follow_logs(task.id)]
    assert b"".join(payload for _, payload, _ in iter_frames(b"".join(chunks))) == b"line 1\nline 2\n"
    await client.close()


async def test_tasks_survive_a_kill_and_are_started_once(cloud: Cloud) -> None:
    client = await cloud.host("one")
    tasks = [simulated(duration_seconds=None) for _ in range(10)]
    for task in tasks:
        await client.put_task(task)
    cloud.end(signal.SIGKILL)
    await cloud.start()
    for task in tasks:
        await client.put_task(task)
        await client.stop_task(task.id, StopRequest("terminated_by_user"))
        assert (await ended(client, task.id)).reason == "terminated_by_user"
    _, starts = await cloud.call("GET", "/starts")
    assert set(starts.values()) <= {1}
    await client.close()


async def test_a_stop_may_be_ignored_for_a_while(cloud: Cloud) -> None:
    client = await cloud.host("one")
    task = simulated(duration_seconds=None, ignore_stop_seconds=100)
    await client.put_task(task)
    async for event in client.events():
        if event.task and event.task["status"] == RUNNING:
            break
    await client.stop_task(task.id, StopRequest(grace_seconds=0.1))
    assert (await ended(client, task.id)).exit_status == 137
    await client.close()


async def test_faults(cloud: Cloud) -> None:
    await cloud.call("PUT", "/faults", {"no_capacity": 1, "lose_answer": 1})
    status, answer = await cloud.call("PUT", "/instances/a")
    assert (status, answer["code"]) == (503, "no_capacity")
    assert (await cloud.call("PUT", "/instances/a"))[0] == 0
    assert (await cloud.call("PUT", "/instances/a"))[0] == 200
    _, instances = await cloud.call("GET", "/instances")
    assert [instance["name"] for instance in instances["instances"]] == ["a"]
    await cloud.call("PUT", "/faults", {"vanish": ["a"]})
    assert (await cloud.call("GET", "/instances/a"))[0] == 404
    assert (await cloud.call("PUT", "/faults", {"gravity": 1}))[0] == 400


async def test_a_thousand_hosts_fit_into_one_process(cloud: Cloud) -> None:
    for number in range(1000):
        assert (await cloud.call("PUT", f"/instances/host-{number}"))[0] == 200
    client = AgentClient.on_socket(str(cloud.folder / "instances" / "host-999.sock"))
    assert (await client.info()).host["hostname"] == "host-999"
    await client.close()


async def test_a_simulated_task_uses_what_it_is_told_to(cloud: Cloud) -> None:
    client = await cloud.host("one")
    gpu = {"gpu_memory_usage_bytes": 5, "gpu_util_percent": 90}
    task = simulated(duration_seconds=None, cpu_cores=2, memory_bytes=1000, gpus=[gpu])
    await client.put_task(task)
    async for event in client.events():
        if event.task and event.task["status"] == RUNNING:
            break
    first, second = [await client.task_metrics(task.id) for _ in range(2)]
    assert (first.memory_usage_bytes, first.memory_working_set_bytes, first.gpus) == (1000, 1000, [gpu])
    assert second.cpu_usage_micro > first.cpu_usage_micro
    await client.stop_task(task.id, StopRequest(grace_seconds=0))
    await ended(client, task.id)
    await client.close()

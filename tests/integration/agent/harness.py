"""An agent as a process of its own, for the tests of this folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from dstack.agent.protocol import ENDED, StopRequest, TaskState, iter_frames
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentClient

SOURCES = Path(__file__).parents[3] / "src"


class AgentProcess:
    """An agent as a process, which tests kill and start again on the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = AgentClient.on_socket(str(folder / "agent.sock"))
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "dstack.agent", "--dir", str(self.folder), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "AGENT_SECRET": "hidden"}
        self.process = self._spawn(command, environment)
        await until(self._answers)

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(self.folder / "agent.err", "ab") as errors:
            return subprocess.Popen(command, env=environment, stderr=errors, stdout=errors)

    async def _answers(self) -> bool:
        try:
            return (await self.client.info()).pid == self.pid
        except Unreachable:
            return False

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(20)

    async def ended(self, task_id: str) -> TaskState:
        async for event in self.client.events():
            if event.task and event.task["id"] == task_id and event.task["status"] == ENDED:
                return TaskState.from_json(event.task)
        raise AssertionError("the event stream ended")

    async def output(self, task_id: str) -> bytes:
        chunks = [chunk.frames async for chunk in self.client.follow_logs(task_id)]
        return b"".join(payload for _, payload, _ in iter_frames(b"".join(chunks)))

    async def clean_up(self) -> None:
        if self.process is None or self.process.poll() is not None:
            await self.start()
        for task in await self.client.list_tasks():
            await self.client.stop_task(task.id, StopRequest(grace_seconds=0))
            await self.ended(task.id)
        await self.client.close()
        self.end(signal.SIGTERM)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)

"""Records what this version's agent keeps on disk, which later agents read: `python -m tools.record_journal`.

A real agent runs a task of each kind and is killed. What it leaves is copied to
`tests/fixtures/agent_journals/<version>/agent`; what is told of its tasks goes to `expected.json` beside it.
Needs Docker and an image with a shell (`--docker-socket`, `--image`).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from dstack import __version__
from dstack.agent import bundle
from dstack.agent.protocol import ENDED, RUNNING, StopRequest, TaskSpec, iter_frames
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentClient

TARGET = Path(__file__).parents[1] / "tests" / "fixtures" / "agent_journals"
WAIT = "while [ ! -e go ]; do sleep 0.05; done"
SECONDS = 60.0
LEFT_OUT = shutil.ignore_patterns("*.sock", "agent.lock", "agent.pyz", "work", "*.tmp")


def task(name: str, text: str, **fields: Any) -> TaskSpec:
    data = {"id": name, "name": name, "executor": "process", "commands": ["/bin/sh", "-c", text]}
    return TaskSpec.from_json({**data, **fields})


def tasks(image: str) -> dict[str, TaskSpec]:
    """One of each kind, by what becomes of it."""
    container = {"executor": "container", "image": image}
    files = [{"name": "upload", "path": "data/"}]
    limits = {"cpu": 1, "memory_bytes": 2**30}
    found = [
        task("done", "echo $GREETING; cat data/text", env={"GREETING": "hello"}, files=files, **limits),
        task("failed", "echo before; exit 3"),
        task("stopped", "echo up; exec sleep 1000"),
        task("unseen", f"{WAIT}; echo after"),
        task("running", "echo started; exec sleep 1000", ports=[8000], **limits),
        task("container-done", "echo from a container", **container),
        task("container-running", "echo started; exec sleep 1000", **container),
    ]
    return {spec.id: spec for spec in found}


class Recording:
    """The agent at work in `folder`."""

    def __init__(self, folder: Path, docker_socket: str) -> None:
        self.folder = folder
        self.client = AgentClient.on_socket(str(folder / "agent.sock"))
        self._command = [sys.executable, str(folder / "agent.pyz"), "--dir", str(folder)]
        self._command += ["--docker-socket", docker_socket]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._process = self._spawn()
        await self.until(self._answers)

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}  # it is written down with the jobs
        return subprocess.Popen(self._command, env=environment)

    async def _answers(self) -> bool:
        try:
            return bool(await self.client.info())
        except Unreachable:
            return False

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + SECONDS
        while not await condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the agent did not get there within {SECONDS:g} s")
            await asyncio.sleep(0.02)

    async def reach(self, task_id: str, status: str) -> None:
        async def is_there() -> bool:
            return (await self.client.get_task(task_id)).status in (status, ENDED)

        await self.until(is_there)

    async def told(self, task_id: str) -> dict[str, Any]:
        """What the agent tells of an ended task."""
        await self.reach(task_id, ENDED)
        state = await self.client.get_task(task_id)
        output = await self.output(task_id)
        return {
            "reason": state.reason,
            "exit_status": state.exit_status,
            "message": state.message,
            "output": output,
        }

    async def output(self, task_id: str) -> str:
        chunks = [chunk.frames async for chunk in self.client.follow_logs(task_id, follow=False)]
        return b"".join(payload for _, payload, _ in iter_frames(b"".join(chunks))).decode()

    async def run(self, image: str) -> dict[str, Any]:
        """Runs the tasks and kills the agent; what has to be told of each task afterwards."""
        client = self.client
        await client.put_file("done", "upload", uploaded("text", b"from a file\n"))
        for spec in tasks(image).values():
            await client.put_task(spec)
        for name in ("stopped", "unseen", "running", "container-running"):
            await self.reach(name, RUNNING)
        for name in ("stopped", "running", "container-running"):
            await self.until(partial(self._has_output, name))
        await client.stop_task("stopped", StopRequest("terminated_by_user", "enough"))
        await client.stop_task("never-started", StopRequest("terminated_by_user", "too late"))
        ended = ("done", "failed", "stopped", "never-started", "container-done")
        expected = {name: await self.told(name) for name in ended}
        await client.acknowledge_logs("done", (await client.get_task("done")).log_end)
        expected["done"]["output"] = ""
        self.kill()
        await self._end_unseen()
        expected["unseen"] = {"reason": "done_by_runner", "exit_status": 0, "message": "", "output": "after\n"}
        for name in ("running", "container-running"):
            expected[name] = {"reason": "executor_error", "exit_status": None, "output": "started\n"}
        return expected

    async def _has_output(self, task_id: str) -> bool:
        return bool(await self.output(task_id))

    async def _end_unseen(self) -> None:
        folder = self.folder / "tasks" / "unseen"
        (folder / "work" / "go").touch()

        async def has_ended() -> bool:
            return (folder / "exit.json").exists()

        await self.until(has_ended)

    async def clean_up(self) -> None:
        """Ends what still runs, by another agent."""
        if self._process is None or self._process.poll() is not None:
            await self.start()
        for state in await self.client.list_tasks():
            await self.client.stop_task(state.id, StopRequest(grace_seconds=0))
            await self.reach(state.id, ENDED)
            await self.client.delete_task(state.id)
        await self.client.close()
        self.kill()


def uploaded(name: str, content: bytes) -> bytes:
    """An archive of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


async def record(docker_socket: str, image: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="journal-") as name:
        folder = Path(name)
        bundle.build(str(folder / "agent.pyz"))
        recording = Recording(folder, docker_socket)
        try:
            await recording.start()
            expected = await recording.run(image)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target / "agent", ignore=LEFT_OUT)
            (target / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
        finally:
            await recording.clean_up()


def main() -> int:
    """Records this version anew."""
    parser = argparse.ArgumentParser(description="Records what this version's agent keeps on disk.")
    parser.add_argument("--docker-socket", default="/var/run/docker.sock", help="default: %(default)s")
    parser.add_argument("--image", default="busybox", help="one with a shell (default: %(default)s)")
    options = parser.parse_args()
    target = TARGET / __version__
    asyncio.run(record(options.docker_socket, options.image, target))
    sys.stdout.write(f"recorded in {os.path.relpath(target)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

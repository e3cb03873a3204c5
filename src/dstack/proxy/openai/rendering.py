"""The process that renders chat templates: started when it is needed, ended when it is slow or idle for long."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from dstack.proxy.openai.errors import ApiError

MAX_SECONDS = 5.0
"""For one prompt, the start of the process included."""
MAX_WAITING = 100
"""Prompts that wait for their turn."""
MAX_IDLE_SECONDS = 300.0
MAX_LINE_BYTES = 64 * 1024 * 1024


class Renderer:
    """One prompt at a time. `close()` ends the process."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._idle: asyncio.Task[None] | None = None

    async def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The prompt. Raises `ApiError`: 400 where the template refuses the messages, 500 where it is wrong."""
        if self._waiting >= MAX_WAITING:
            raise ApiError(503, "Too many prompts wait to be rendered", headers=((b"retry-after", b"1"),))
        self._waiting += 1
        try:
            async with self._turn:
                answer = await self._ask({"template": template, "variables": dict(variables)})
        finally:
            self._waiting -= 1
        if "refused" in answer:
            raise ApiError(400, f"The model's chat template refuses the messages: {answer['refused']}")
        if "bad" in answer:
            raise ApiError(500, f"The model's chat template failed: {answer['bad']}")
        return str(answer["prompt"])

    async def close(self) -> None:
        self._stay_awake()
        await self._end()

    def _stay_awake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def _end_when_idle(self) -> None:
        await asyncio.sleep(MAX_IDLE_SECONDS)
        self._idle = None
        async with self._turn:
            await self._end()

    async def _ask(self, question: dict[str, Any]) -> dict[str, str]:
        self._stay_awake()
        try:
            answer = await asyncio.wait_for(self._exchange(question), MAX_SECONDS)
        except asyncio.TimeoutError:
            await self._end()
            return {"bad": f"it took longer than {MAX_SECONDS:g} s"}
        except BaseException:  # its answer would be taken for the next one's
            await self._end()
            raise
        self._idle = asyncio.ensure_future(self._end_when_idle())
        return answer

    async def _exchange(self, question: dict[str, Any]) -> dict[str, str]:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await _start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question).encode() + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            await self._end()
            return {"bad": "its process ended, for want of memory or by a signal"}
        answer: dict[str, str] = json.loads(line)
        return answer


async def _start() -> asyncio.subprocess.Process:
    """Nothing of our environment but where modules are."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "dstack.proxy.openai.templates",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd="/",
        limit=MAX_LINE_BYTES,
        start_new_session=True,
    )

"""The event stream: the newest state of every task arrives, whatever changes while it is being sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from dstack.agent.http import Request
from dstack.agent.protocol import DONE, ENDED, PENDING, RUNNING, TaskSpec
from dstack.agent.server import Agent
from dstack.agent.tasks import Tasks


async def test_a_change_while_others_are_sent_hides_none_of_them(tmp_path: Path) -> None:
    tasks = Tasks(str(tmp_path), sync=False)
    made = [tasks.create(name, TaskSpec(name, name, "process", [])) for name in ("a", "b", "c")]
    agent = Agent(tasks, {})
    response = await agent.handle(Request("GET", "/v1/events", {}, asyncio.StreamReader()))
    lines = response.body
    assert not isinstance(lines, bytes)
    assert await _next(lines) == ("a", PENDING)
    tasks.update(made[1], status=RUNNING)
    assert await _next(lines) == ("c", PENDING)
    tasks.end(made[2], DONE)
    assert await _next(lines) == ("b", RUNNING)
    assert await _next(lines) == ("c", ENDED)


async def _next(lines: AsyncIterator[bytes]) -> tuple[str, str]:
    task = json.loads(await anext(lines))["task"]
    return task["id"], task["status"]

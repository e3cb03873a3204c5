"""What the agent finds wrong with its host, and how it tells."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from dstack.agent.gpu.parse import MIB, Gpu
from dstack.agent.health import (
    FAILURE,
    HEALTHY,
    WARNING,
    Problem,
    disk_problems,
    gpu_problems,
    look,
    memory_problems,
    report,
)
from dstack.agent.http import Request
from dstack.agent.protocol import PENDING, TaskSpec
from dstack.agent.server import Agent
from dstack.agent.tasks import Tasks


@pytest.mark.parametrize(
    ("free_mib", "statuses"), [(50_000, []), (1024, []), (1023, [WARNING]), (100, [WARNING]), (99, [FAILURE])]
)
def test_little_room_is_a_warning_and_none_a_failure(free_mib: int, statuses: list[str]) -> None:
    assert [one.status for one in disk_problems("/agent", free_mib * MIB)] == statuses


def test_the_room_is_told_in_steps_so_that_it_is_no_news_each_minute() -> None:
    assert disk_problems("/agent", 500 * MIB) == disk_problems("/agent", 400 * MIB)


def test_an_accelerator_that_is_gone_is_named() -> None:
    first, second = (Gpu("nvidia", "H100", 81920, f"GPU-{number}") for number in (1, 2))
    [problem] = gpu_problems([first, second], [second])
    assert problem == Problem(FAILURE, "the accelerator H100 (GPU-1) is no longer there")


def test_uncorrected_errors_of_memory_are_counted() -> None:
    [problem] = memory_problems("GPU-1, 0\nGPU-2, 3\nGPU-3, [N/A]\n")
    assert problem.message == "3 uncorrected errors in the memory of the accelerator GPU-2"


def test_a_report_is_as_bad_as_its_worst_problem() -> None:
    assert report([]) == {"status": HEALTHY, "problems": []}
    assert report([Problem(FAILURE, "a"), Problem(WARNING, "b")])["status"] == FAILURE


def test_this_machine_can_be_looked_at(tmp_path: Path) -> None:
    assert all(problem.status in (WARNING, FAILURE) for problem in look(str(tmp_path), []))


async def test_the_event_stream_begins_with_the_health_and_tells_each_change_once(tmp_path: Path) -> None:
    tasks = Tasks(str(tmp_path), sync=False)
    agent = Agent(tasks, {})
    agent.health.put([Problem(WARNING, "hot")])
    lines = (await agent.handle(Request("GET", "/v1/events", {}, asyncio.StreamReader()))).body
    assert not isinstance(lines, bytes)
    first = json.loads(await anext(lines))
    assert (first["type"], first["health"]["status"]) == ("health", WARNING)
    tasks.create("a", TaskSpec("a", "a", "process", []))
    agent.health.put([Problem(WARNING, "hot")])
    assert json.loads(await anext(lines))["task"]["status"] == PENDING
    agent.health.put([])
    assert json.loads(await anext(lines))["health"] == {"status": HEALTHY, "problems": []}

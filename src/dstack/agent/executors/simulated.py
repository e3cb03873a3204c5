"""Tasks without any process: they start, print and end as `TaskSpec.simulation` says.

| key | meaning |
|---|---|
| `duration_seconds` | how long it runs; 0 by default; null: until it is stopped |
| `exit_status` | 0 by default |
| `message` | told at its end |
| `log_lines` | how many lines it prints (`line 1`, …), or a list of lines |
| `start_seconds` | how long it is `preparing` |
| `start_error` | it never runs and ends with `creating_container_error` and this message |
| `ignore_stop_seconds` | how long it ignores a stop; never longer than the grace |
| `cpu_cores`, `memory_bytes` | what it uses all the time; 0 by default |
| `gpus` | list of `gpu_memory_usage_bytes` and `gpu_util_percent`, one an accelerator |
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Callable, Dict, List

from dstack.agent import usage
from dstack.agent.logs import READ_BYTES, LogWriter
from dstack.agent.protocol import (
    CREATING_FAILED,
    DONE,
    EXITED_WITH_ERROR,
    MAX_DURATION_EXCEEDED,
    PREPARING,
    RUNNING,
    ConnectRequest,
    ExecRequest,
    GpuMetrics,
    TaskMetrics,
    encode_frame,
)
from dstack.agent.sessions import Program, SessionRefused
from dstack.agent.tasks import Task, Tasks

_log = logging.getLogger(__name__)
INTERRUPTED, KILLED = 130, 137
NO_PROCESSES = "the task is simulated: there are no processes beside which a program could run or listen"


class SimulatedExecutor:
    """`on_start` is told the id of each task that is started, so that tests can count."""

    name = "simulated"

    def __init__(self, tasks: Tasks, on_start: Callable[[str], None] = lambda task_id: None) -> None:
        self._tasks = tasks
        self._on_start = on_start
        self._timers: Dict[str, asyncio.TimerHandle] = {}

    def ensure(self, task: Task) -> None:
        assert task.spec
        if task.stop:
            self.stop(task)
        elif task.state.status == RUNNING:
            self._schedule_end(task)
        elif task.id not in self._timers:
            self._tasks.update(task, status=PREPARING)
            self._later(task, float(task.spec.simulation.get("start_seconds", 0)), self._run)

    def _later(self, task: Task, seconds: float, action: Callable[[Task], None]) -> None:
        timer = self._timers.pop(task.id, None)
        if timer:
            timer.cancel()
        self._timers[task.id] = asyncio.get_running_loop().call_later(max(0, seconds), self._act, task, action)

    def _act(self, task: Task, action: Callable[[Task], None]) -> None:
        self._timers.pop(task.id, None)
        if task.is_live:
            action(task)

    def _run(self, task: Task) -> None:
        assert task.spec
        error = task.spec.simulation.get("start_error")
        if error:
            self._tasks.end(task, CREATING_FAILED, str(error))
            return
        self._count(task)
        _write_log(task)
        self._tasks.update(task, status=RUNNING, started_at=time.time(), working_dir="/", username="root")
        task.wake()
        self._schedule_end(task)

    def _count(self, task: Task) -> None:
        """Counts the start, once: a mark on disk says that it was."""
        try:
            os.close(os.open(task.path("started"), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
        self._on_start(task.id)

    def _schedule_end(self, task: Task) -> None:
        assert task.spec
        started = task.state.started_at or time.time()
        duration = task.spec.simulation.get("duration_seconds", 0)
        limit = task.spec.max_duration_seconds
        if limit is not None and (duration is None or limit < duration):
            self._later(task, started + limit - time.time(), self._run_out)
        elif duration is not None:
            self._later(task, started + duration - time.time(), self._complete)

    def _run_out(self, task: Task) -> None:
        self._tasks.end(task, MAX_DURATION_EXCEEDED, exit_status=KILLED)

    def _complete(self, task: Task) -> None:
        assert task.spec
        status = int(task.spec.simulation.get("exit_status", 0))
        message = str(task.spec.simulation.get("message", ""))
        self._tasks.end(task, EXITED_WITH_ERROR if status else DONE, message, status)

    def stop(self, task: Task) -> None:
        assert task.stop
        assert task.spec
        stop, grace = task.stop, task.stop.grace_seconds
        grace = task.spec.stop_grace_seconds if grace is None else grace
        ignored = float(task.spec.simulation.get("ignore_stop_seconds", 0))
        status = None if task.state.status != RUNNING else KILLED if ignored >= grace else INTERRUPTED
        end = lambda ended: self._tasks.end(ended, stop.reason, stop.message, status)  # noqa: E731 - a closure
        if status is None or min(grace, ignored) <= 0:
            self._act(task, end)
        else:
            self._later(task, min(grace, ignored), end)

    async def forget(self, task: Task) -> None:
        return

    def acknowledged(self, task: Task) -> None:
        return

    async def measure(self, task: Task) -> TaskMetrics:
        assert task.spec
        simulation, ran = task.spec.simulation, time.time() - (task.state.started_at or time.time())
        memory = int(simulation.get("memory_bytes", 0))
        used = usage.Usage(int(ran * float(simulation.get("cpu_cores", 0)) * usage.MICRO), memory, memory)
        return usage.as_metrics(used, [GpuMetrics.from_json(gpu) for gpu in simulation.get("gpus", [])])

    async def exec(self, task: Task, request: ExecRequest) -> Program:
        raise SessionRefused(400, NO_PROCESSES)

    async def connect(self, task: Task, request: ConnectRequest) -> socket.socket:
        raise SessionRefused(400, NO_PROCESSES)

    def check(self) -> None:
        return

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def _write_log(task: Task) -> None:
    """Writes what is missing of the log; it is the same bytes each time, so a crash within it does no harm."""
    assert task.spec
    wanted = task.spec.simulation.get("log_lines", 0)
    lines: List[str] = wanted if isinstance(wanted, list) else [f"line {n + 1}" for n in range(wanted)]
    if not lines:
        return
    timestamp_us = int(task.state.created_at * 1_000_000)
    writer = LogWriter(task.log_folder)
    try:
        frames = b"".join(encode_frame(timestamp_us, line.encode() + b"\n") for line in lines)
        for start in range(writer.end, len(frames), READ_BYTES):
            writer.append_frames(frames[start : start + READ_BYTES])
    finally:
        writer.close()

"""What an idle server costs."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from tests.e2e.harness import ServerProcess, end_processes_of

from bench.measure import Benchmark, Result, at_most, process_of, running_server, seconds_of

IDLE_SECONDS = 20


def cold_start(folder: Path) -> list[Result]:
    """start on a fresh home to a healthy answer"""
    times, processor_times = [], []
    for attempt in range(5):
        server = ServerProcess(folder / str(attempt))
        try:
            times.append(seconds_of(server.start))
            used = process_of(server).cpu_times()
            processor_times.append(used.user + used.system)
            server.stop()
        finally:
            end_processes_of(folder / str(attempt))
    return [
        at_most("cold start to healthy", 1.5, statistics.median(times), "s"),
        Result("  processor time it takes", "", f"{statistics.median(processor_times):.3g} s"),
    ]


def idle_cost(folder: Path) -> list[Result]:
    """memory and CPU of a server that has nothing to do"""
    with running_server(folder) as server:
        process = process_of(server)
        time.sleep(5)  # what start-up does in the background is not idle yet
        before = process.cpu_times()
        time.sleep(IDLE_SECONDS)
        after = process.cpu_times()
        used = (after.user + after.system) - (before.user + before.system)
        memory = process.memory_full_info()
        megabyte = 1024 * 1024
        return [
            at_most("idle memory (RSS)", 120, memory.rss / megabyte, "MB"),
            Result("idle memory (PSS)", "", f"{memory.pss / megabyte:.3g} MB"),
            at_most("idle CPU of a core", 0.5, 100 * used / IDLE_SECONDS, "%"),
        ]


BENCHMARKS: list[Benchmark] = [cold_start, idle_cost]

"""What the benchmarks share: results, servers, processes, a load generator."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tests.e2e.harness import TOKEN, ServerProcess, clean_environment, end_processes_of


@dataclass(frozen=True)
class Result:
    """One line of the table. `verdict` says whether the target is met, where there is one."""

    what: str
    target: str
    measured: str
    verdict: str = ""


Benchmark = Callable[[Path], list[Result]]
"""Gets an empty folder; what it starts must have ended when it returns."""


def at_most(what: str, limit: float, measured: float, unit: str) -> Result:
    """A budget."""
    return Result(what, f"<= {limit:g} {unit}", f"{measured:.3g} {unit}", "ok" if measured <= limit else "over")


def at_least(what: str, floor: float, measured: float, unit: str) -> Result:
    """A rate."""
    return Result(what, f">= {floor:g} {unit}", f"{measured:,.5g} {unit}", "ok" if measured >= floor else "under")


@contextlib.contextmanager
def running_server(folder: Path, *prefix: str, **environment: str) -> Iterator[ServerProcess]:
    """A healthy server on a home of its own; it and its agent end with the block.

    `prefix`: what it is started with.
    """
    server = ServerProcess(folder / "home", env=environment, prefix=prefix)
    try:
        yield server.start()
        server.stop()
    finally:
        end_processes_of(folder)


def seconds_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def median_seconds(action: Callable[[], object], times: int = 7) -> float:
    """The median over `times`, after one to warm up."""
    action()
    return statistics.median(seconds_of(action) for _ in range(times))


def dstack(folder: Path, *arguments: str) -> str:
    """Output of the command, with the home that `running_server` has under `folder`."""
    ended = subprocess.run(
        [sys.executable, "-m", "dstack", *arguments],
        env=clean_environment(folder / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if ended.returncode != 0:
        raise RuntimeError(f"dstack {' '.join(arguments)} exited with {ended.returncode}: {ended.stdout}")
    return ended.stdout


def process_of(server: ServerProcess) -> psutil.Process:
    assert server.process is not None
    return psutil.Process(server.process.pid)


def seconds_without_processor(process: psutil.Process) -> float:
    """How long its first thread was ready to run so far while others had the processors."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time that it has used so far."""
    times = process.cpu_times()
    return times.user + times.system


def post_rate(server: ServerProcess, path: str, body: Any, *, connections: int, seconds: int = 5) -> float:
    """Requests per second of one POST, by `wrk`. Raises RuntimeError when answers are not 200."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed")
    script = server.home / "post.lua"
    script.write_text(
        'wrk.method = "POST"\n'
        f"wrk.body = {json.dumps(json.dumps(body))}\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer {TOKEN}"\n'
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), server.url + path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        raise RuntimeError(f"{path} did not always answer 200:\n{output}")
    found = re.search(r"Requests/sec:\s*([\d.]+)", output)
    assert found is not None, output
    return float(found.group(1))

"""How large logs get from a job into the store, and from there to whoever reads them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import termios
import time
import uuid
from pathlib import Path

import psutil
from tests.e2e.harness import ServerProcess, agent_pid, clean_environment, wait_for

from bench.measure import Benchmark, Result, at_least, at_most, cpu_seconds, process_of, running_server
from dstack.agent.protocol import FRAME_HEADER, MAX_FRAME_BYTES
from dstack.server.stores.logs.base import LogKey, LogQuery
from dstack.server.stores.logs.files import FileLogStore

ANY_HOST = {"cpu": "0..", "memory": "0..", "disk": "0.."}
LINE, LINES = "x" * 99, 4_000_000
BATCH_BYTES = 1024 * 1024
SECONDS = 2


def log_store(folder: Path) -> list[Result]:
    """storing output in files, and reading the end of it"""
    return asyncio.run(_measure(folder))


async def _measure(folder: Path) -> list[Result]:
    store, results = FileLogStore(folder), []
    for size in (100, MAX_FRAME_BYTES):
        key = LogKey("main", f"frames-{size}", uuid.uuid4())
        frames = [(1_767_323_045_000_000, b"x" * size)] * (BATCH_BYTES // size)
        length, batches, start = len(frames) * (FRAME_HEADER.size + size), 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            batches += 1
            await store.append(key, frames, batches * length)
        rate = batches * len(frames) * size / 1e6 / (time.perf_counter() - start)
        what = f"storing output, pieces of {size:,} bytes"
        results.append(at_least(what, 50, rate, "MB/s") if size > 100 else Result(what, "", f"{rate:.3g} MB/s"))
        start = time.perf_counter()
        await store.poll(key, LogQuery(descending=True, limit=100))
        milliseconds = (time.perf_counter() - start) * 1000
        results.append(Result(f"  last page of {batches} MB", "", f"{milliseconds:.3g} ms"))
    return results


def log_path(folder: Path) -> list[Result]:
    """jobs that write as quickly as they can, from their terminal to the store; memory and CPU on the way"""
    by_name = {
        "blocks": f"yes {LINE} | head -c {LINES * 100}",
        "lines": f"""python3 -c "import os\nfor _ in range({LINES}): os.write(1, b'{LINE}\\n')\"""",
    }
    with running_server(folder) as server:
        server.submit("first", ["echo hello"], resources=ANY_HOST)
        server.wait_run("first", "done")
        return [
            result
            for name, command in by_name.items()
            for result in (*_through(server, name, command), _into_a_terminal(command))
        ]


def _through(server: ServerProcess, name: str, command: str) -> list[Result]:
    size = LINES * 100
    watched = {"agent": psutil.Process(agent_pid(server.home)), "server": process_of(server)}
    before = {who: process.memory_info().rss for who, process in watched.items()}
    peak, used = dict(before), {who: cpu_seconds(process) for who, process in watched.items()}
    server.submit(name, ["sleep 0.3", command], resources=ANY_HOST)
    stored = _stored_log(server, name)
    wait_for("the first output", lambda: _size(stored) > 0)
    start = time.perf_counter()
    supervisor = max(watched["agent"].children(), key=psutil.Process.create_time)
    family: dict[psutil.Process, float] = {}
    while _size(stored) < size:
        for who, process in watched.items():
            peak[who] = max(peak[who], process.memory_info().rss)
        family |= _cpu_of_family(supervisor)
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    server.wait_run(name, "done")
    results = [at_least(f"output of a job into the store, {name}", 50, size / 1e6 / seconds, "MB/s")]
    for who, process in watched.items():
        cpu, grown = cpu_seconds(process) - used[who], (peak[who] - before[who]) / 1e6
        results.append(Result(f"  {who}: CPU, memory grown by", "", f"{cpu:.3g} s, {grown:.3g} MB"))
    own = family.pop(supervisor, 0.0)
    results.append(Result("  supervisor of the job: CPU", "", f"{own:.3g} s"))
    results.append(Result("  the job itself: CPU", "", f"{sum(family.values()):.3g} s"))
    return results


def _cpu_of_family(supervisor: psutil.Process) -> dict[psutil.Process, float]:
    """Seconds that the supervisor and each process of its job have used; those that ended are left out."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (supervisor, *supervisor.children(recursive=True)):
            found[process] = cpu_seconds(process)
    return found


def _into_a_terminal(command: str) -> Result:
    """How quickly the same comes out of a terminal when nothing is done with it: what there is to reach."""
    master, slave = os.openpty()
    mode = termios.tcgetattr(slave)
    mode[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    with subprocess.Popen(["sh", "-c", command], stdout=slave):
        os.close(slave)
        size, start = len(os.read(master, MAX_FRAME_BYTES)), time.perf_counter()
        while size < LINES * 100:
            size += len(os.read(master, MAX_FRAME_BYTES))
    os.close(master)
    rate = size / 1e6 / (time.perf_counter() - start)
    return Result("  a terminal alone, its output thrown away", "", f"{rate:.3g} MB/s")


def logs_first_line(folder: Path) -> list[Result]:
    """`dstack logs` of 1,000,000 lines: when the first one is printed, and how quickly all are"""
    with running_server(folder) as server:
        server.submit("long", [f"yes {LINE} | head -n 1000000"], resources=ANY_HOST)
        server.wait_run("long", "done")
        command = [sys.executable, "-m", "dstack", "logs", "long"]
        firsts, rates = [], []
        for _ in range(5):
            start = time.perf_counter()
            with subprocess.Popen(
                command, env=clean_environment(folder / "home"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            ) as reading:
                assert reading.stdout is not None
                size = len(reading.stdout.readline())
                firsts.append(time.perf_counter() - start)
                while data := reading.stdout.read(1 << 16):
                    size += len(data)
            if size != 100_000_000:
                raise RuntimeError(f"dstack logs printed {size:,} bytes of 100,000,000")
            rates.append(size / 1e6 / (time.perf_counter() - start))
        return [
            at_most("dstack logs of 1,000,000 lines, first line", 0.3, statistics.median(firsts), "s"),
            Result("  all of them", "", f"{statistics.median(rates):.3g} MB/s"),
        ]


def _stored_log(server: ServerProcess, name: str) -> Path:
    submission = server.run(name)["jobs"][0]["job_submissions"][-1]["id"]
    return server.home / f".dstack/server/projects/main/logs/{name}/{submission}/job.log"


def _size(path: Path) -> int:
    """Bytes of output in a stored log, of which a file of Base64 tells within 1 %; 0 when there is none."""
    return path.stat().st_size * 3 // 4 if path.exists() else 0


BENCHMARKS: list[Benchmark] = [log_store, log_path, logs_first_line]

"""How quickly jobs move."""

from __future__ import annotations

import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.e2e.harness import ServerProcess, agent_pid, wait_for
from tests.e2e.simulated import Simulator
from tests.fixtures.postgres import find_binaries, postgres_server

from bench.measure import (
    Benchmark,
    Result,
    at_least,
    at_most,
    cpu_seconds,
    dstack,
    post_rate,
    process_of,
    running_server,
)

JOBS = 1000
ONE_CPU = {"cpu": "1..", "memory": "0..", "disk": "0.."}
ANY_HOST = {"cpu": "0..", "memory": "0..", "disk": "0.."}


def first_output(folder: Path) -> list[Result]:
    """a task accepted to the first line of its output in the store, and a job's end to `done` in the API"""
    with running_server(folder) as server:
        time.sleep(1)  # as between `dstack server` and a person's first command
        to_output, to_done = zip(
            *(_one_task(server, f"first-{number}", folder) for number in range(9)), strict=True
        )
        return [
            at_most("accepted to first output line", 0.3, statistics.median(to_output[1:]), "s"),
            Result("  the first task of a server (starts the agent)", "", f"{to_output[0]:.3g} s"),
            at_most("end of a job to done in the API", 0.1, statistics.median(to_done), "s"),
            Result("  the quickest of 9", "", f"{min(to_output):.3g} s, {min(to_done):.3g} s"),
        ]


def _one_task(server: ServerProcess, name: str, folder: Path) -> tuple[float, float]:
    """Seconds from the answer that accepts it to its first stored line, and from its end to `done`."""
    stamp = folder / f"stamp-{name}"
    server.submit(name, ["echo hello", "sleep 0.3", f"date +%s.%N > {stamp}"], resources=ANY_HOST)
    accepted = time.time()
    wait_for("the first line", partial(server.log, name), 30)
    seen = time.time()
    wait_for("done", partial(_is_done, server, name), 30)
    return seen - accepted, time.time() - float(stamp.read_text())


def _is_done(server: ServerProcess, name: str) -> bool:
    return bool(server.run(name)["status"] == "done")


def thousand_jobs(folder: Path) -> list[Result]:
    """1,000 short jobs at once on simulated agents, then `runs/list` returning 100 of the finished runs"""
    return _thousand_jobs(folder, "SQLite")


def thousand_jobs_postgresql(folder: Path) -> list[Result]:
    """the same on PostgreSQL"""
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError("PostgreSQL is not installed")
    with postgres_server(binaries) as postgres:
        return _thousand_jobs(folder, "PostgreSQL", DSTACK_DATABASE_URL=postgres.url(postgres.create()))


def _thousand_jobs(folder: Path, engine: str, **environment: str) -> list[Result]:
    with Simulator.started(folder / "cloud") as simulator:
        simulator.write_server_config(folder / "home/.dstack/server")
        with running_server(folder, DSTACK_LOCAL_BACKEND="off", **environment) as server:
            simulator.apply_fleet(server, nodes=10, blocks=16)
            before, start = cpu_seconds(process_of(server)), time.monotonic()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: _submit(server, f"job-{number}"), range(JOBS)))
            submitted = time.monotonic() - start
            wait_for("all jobs to end", lambda: _all_ended(server), 600)
            seconds = time.monotonic() - start
            used = cpu_seconds(process_of(server)) - before
            runs = server.list_runs()
            done = sum(run["status"] == "done" for run in runs)
            starts = simulator.starts()
            page = {"project_name": "main", "only_active": False, "limit": 100, "job_submissions_limit": 1}
            returned = len(server.post("/api/runs/list", page))
            rate = post_rate(server, "/api/runs/list", page, connections=16)
            return [
                Result(
                    f"1,000 short jobs, {engine}", "", f"{JOBS / seconds:.1f} jobs/s", f"{seconds:.1f} s in all"
                ),
                Result("  accepted", "", f"{JOBS / submitted:.1f} jobs/s"),
                Result("  processor time of the server a job", "", f"{used / JOBS * 1000:.3g} ms"),
                Result("  done", f"{JOBS}", f"{done}", "ok" if done == JOBS else "lost"),
                Result("  started", f"{JOBS}", f"{len(starts)}", "ok" if len(starts) == JOBS else "wrong"),
                Result("  started twice", "0", f"{sum(count > 1 for count in starts.values())}"),
                at_least(f"runs/list, {returned} of {JOBS:,} runs", 100, rate, "req/s"),
            ]


def _submit(server: ServerProcess, name: str) -> None:
    server.submit(name, ["true"], resources=ONE_CPU, retry={"on_events": ["no-capacity"], "duration": "1h"})


def _all_ended(server: ServerProcess) -> bool:
    time.sleep(0.1)
    body = {"project_name": "main", "only_active": True, "limit": 1}
    return not server.post("/api/runs/list", body)


def agent_memory(folder: Path) -> list[Result]:
    """memory of the agent on a host"""
    with running_server(folder) as server:
        server.submit("one", ["sleep 60"])
        server.wait_run("one", "running")
        command = ["ps", "-o", "rss=", "-p", str(agent_pid(server.home))]
        kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return [Result("agent with one job (RSS)", "", f"{kilobytes / 1024:.3g} MB")]


def attached_task(folder: Path) -> list[Result]:
    """`dstack apply -y` of a task that ends at once, from start to exit"""
    with running_server(folder):
        configuration = folder / "task.dstack.yml"
        configuration.write_text("type: task\nname: attached\ncommands: [echo hello]\n")
        times = []
        for _ in range(5):
            start = time.perf_counter()
            dstack(folder, "apply", "-y", "--force", "-f", str(configuration))
            times.append(time.perf_counter() - start)
        return [Result("apply of an echo, attached, to its exit", "", f"{statistics.median(times):.3g} s")]


BENCHMARKS: list[Benchmark] = [first_output, attached_task, agent_memory, thousand_jobs, thousand_jobs_postgresql]

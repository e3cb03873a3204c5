"""A fleet of 1,000 hosts over SSH: what it costs the server, and how quickly jobs move on it."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import ROOT, ServerProcess, clean_environment, free_port, wait_for
from tests.e2e.ssh import is_listening, make_key

from bench.measure import Benchmark, Result, at_most, cpu_seconds, process_of, running_server

HOSTS = 1000
NODES = 100
JOBS = 1000
IDLE_SECONDS = 30
MEGABYTE = 2**20
SMALL = {"cpu": "1..", "memory": "1GB..", "disk": "1GB.."}
FLEET = "hosts"


@dataclass
class Cluster:
    """Simulated hosts, each with an SSH server on an address of its own; `key` lets in."""

    folder: Path
    key: Path
    port: int

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path) -> Iterator[Cluster]:
        """Ends with the block."""
        folder.mkdir(parents=True)
        cluster = cls(folder, make_key(folder), free_port())
        command = [sys.executable, "-m", "bench.simulated_hosts", str(folder), str(cluster.port)]
        environment = clean_environment(folder)
        environment["PYTHONPATH"] += f":{ROOT}"
        with (folder / "log").open("wb") as log:
            command.append(str(cluster.key.with_suffix(".pub")))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for("the simulated hosts", lambda: is_listening(cluster.port))
            yield cluster
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)

    def fleet(self, count: int) -> dict[str, Any]:
        """A specification with so many hosts."""
        ssh_config = {
            "user": "root",
            "port": self.port,
            "ssh_key": {"public": "", "private": self.key.read_text()},
            "hosts": [f"127.20.{number // 250}.{number % 250 + 1}" for number in range(count)],
        }
        configuration = {"type": "fleet", "name": FLEET, "ssh_config": ssh_config, "placement": "cluster"}
        return {"configuration": configuration, "profile": {"name": "default"}}


class Watch:
    """Reads the server's database while it works, which costs the server nothing."""

    def __init__(self, server: ServerProcess) -> None:
        path = server.home / ".dstack/server/data/sqlite.db"
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def count(self, table: str, *statuses: str) -> int:
        """How many rows of the table are in one of these statuses."""
        marks = ", ".join("?" for _ in statuses)
        query = f"SELECT count(*) FROM {table} WHERE status IN ({marks})"
        return int(self._connection.execute(query, statuses).fetchone()[0])

    def ended_jobs(self) -> dict[str, float]:
        """When the task of each finished job ended on its host, in seconds since 1970."""
        query = "SELECT id, json_extract(task_state, '$.ended_at') FROM jobs WHERE status = 'done'"
        return {str(id): float(at) for id, at in self._connection.execute(query) if at is not None}


def thousand_hosts(folder: Path) -> list[Result]:
    """an SSH fleet of 1,000 simulated hosts: memory and CPU a host, 1,000 jobs of a second, a task of 100 nodes"""
    with (
        Cluster.started(folder / "cluster") as cluster,
        running_server(folder, DSTACK_LOCAL_BACKEND="off") as server,
    ):
        apply_fleet(server, cluster.fleet(1))
        watch = Watch(server)
        wait_for("the first host", lambda: watch.count("instances", "idle") == 1, 60)
        memory = memory_of(server)
        results = _add_hosts(server, cluster, watch)
        results += _idle(server, memory)
        results += _short_jobs(server, watch)
        return results + _distributed(server, watch)


def apply_fleet(server: ServerProcess, spec: dict[str, Any]) -> dict[str, Any]:
    """What `dstack apply` does; the fleet as answered."""
    current = server.post("/api/project/main/fleets/get_plan", {"spec": spec})["current_resource"]
    body = {"plan": {"spec": spec, "current_resource": current}, "force": False}
    fleet: dict[str, Any] = server.post("/api/project/main/fleets/apply", body)
    return fleet


def memory_of(server: ServerProcess) -> float:
    """Resident memory in MB."""
    return float(process_of(server).memory_info().rss) / MEGABYTE


def _add_hosts(server: ServerProcess, cluster: Cluster, watch: Watch) -> list[Result]:
    used, start = cpu_seconds(process_of(server)), time.monotonic()
    apply_fleet(server, cluster.fleet(HOSTS))
    accepted = time.monotonic() - start
    wait_for("all hosts", lambda: watch.count("instances", "idle") == HOSTS, 900)
    seconds = time.monotonic() - start
    return [
        Result(f"{HOSTS:,} hosts, apply accepted", "", f"{accepted:.3g} s"),
        Result("  all of them idle", "", f"{seconds:.3g} s"),
        Result(
            "  processor time a host",
            "",
            f"{(cpu_seconds(process_of(server)) - used) / HOSTS * 1000:.3g} ms",
        ),
    ]


def _idle(server: ServerProcess, memory_before: float) -> list[Result]:
    time.sleep(10)  # what follows the last host is not idle yet
    grown, before = memory_of(server) - memory_before, cpu_seconds(process_of(server))
    time.sleep(IDLE_SECONDS)
    used = cpu_seconds(process_of(server)) - before
    return [
        at_most(f"{HOSTS:,} hosts, memory of the server a host", 0.2, grown / (HOSTS - 1), "MB"),
        at_most(f"{HOSTS:,} hosts, idle CPU of a core", 5, 100 * used / IDLE_SECONDS, "%"),
    ]


def _short_jobs(server: ServerProcess, watch: Watch) -> list[Result]:
    used, start = cpu_seconds(process_of(server)), time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(_submit, server, f"job-{number}") for number in range(JOBS)]
        lags = _lags(watch)
        submitted = max(one.result() for one in accepted) - start
    seconds = time.monotonic() - start
    spent = (cpu_seconds(process_of(server)) - used) / JOBS * 1000
    cuts = statistics.quantiles(lags, n=100)
    return [
        Result(f"{JOBS:,} jobs of 1 s on {HOSTS:,} hosts", "", f"{JOBS / seconds:.3g} jobs/s"),
        Result("  accepted", "", f"{JOBS / submitted:.3g} jobs/s"),
        Result("  processor time of the server a job", "", f"{spent:.3g} ms"),
        Result("  end on the host to done, median and p99", "", f"{cuts[49]:.3g} s, {cuts[98]:.3g} s"),
    ]


def _submit(server: ServerProcess, name: str) -> float:
    """When it was accepted, by the monotonic clock."""
    retry = {"on_events": ["no-capacity"], "duration": "1h"}
    server.submit(name, ["true"], resources=SMALL, env={"DSTACK_SIM_DURATION": "1"}, retry=retry)
    return time.monotonic()


def _lags(watch: Watch) -> list[float]:
    """Seconds from the end of each task on its host until its job is seen to be done."""
    lags: dict[str, float] = {}

    def see() -> bool:
        time.sleep(0.05)
        now = time.time()
        for id, at in watch.ended_jobs().items():
            lags.setdefault(id, now - at)
        return len(lags) == JOBS

    wait_for("all jobs to end", see, 600)
    return list(lags.values())


def _distributed(server: ServerProcess, watch: Watch) -> list[Result]:
    start = time.monotonic()
    server.submit("wide", ["true"], nodes=NODES, resources=SMALL, env={"DSTACK_SIM_DURATION": "15"})
    accepted = time.monotonic() - start
    wait_for("the nodes to run", lambda: watch.count("runs", "running") == 1, 120)
    running = time.monotonic() - start
    server.wait_run("wide", "done", timeout=120)
    return [
        at_most(f"a task of {NODES} nodes, submitted to running", 5, running, "s"),
        Result("  accepted", "", f"{accepted:.3g} s"),
        Result("  its end to done", "", f"{time.monotonic() - start - running - 15:.3g} s"),
    ]


BENCHMARKS: list[Benchmark] = [thousand_hosts]

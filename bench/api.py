"""How many requests the REST API answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.harness import ServerProcess, wait_for
from tests.e2e.simulated import Simulator

from bench.measure import Benchmark, Result, at_least, post_rate, running_server

RUNS = 1000


def who_am_i(folder: Path) -> list[Result]:
    """`users/get_my_user`, 16 connections"""
    with running_server(folder) as server:
        rate = post_rate(server, "/api/users/get_my_user", {}, connections=16)
        return [at_least("users/get_my_user, 16 connections", 2000, rate, "req/s")]


def list_runs(folder: Path) -> list[Result]:
    """`runs/list` returning 100 of 1,000 finished runs"""
    with Simulator.started(folder / "cloud") as simulator:
        simulator.write_server_config(folder / "home/.dstack/server")
        with running_server(folder, DSTACK_LOCAL_BACKEND="off") as server:
            simulator.apply_fleet(server, nodes=10, blocks=16)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: _submit(server, number), range(RUNS)))
            active = {"project_name": "main", "only_active": True, "limit": 1}
            wait_for("all runs to end", lambda: server.post("/api/runs/list", active) == [], 600)
            body = {"project_name": "main", "only_active": False, "limit": 100, "job_submissions_limit": 1}
            returned = len(server.post("/api/runs/list", body))
            rate = post_rate(server, "/api/runs/list", body, connections=16)
            return [at_least(f"runs/list, {returned} of {RUNS:,} runs", 100, rate, "req/s")]


def _submit(server: ServerProcess, number: int) -> None:
    retry = {"on_events": ["no-capacity"], "duration": "1h"}
    server.submit(f"run-{number}", ["true"], resources={"cpu": "1..", "memory": "0..", "disk": "0.."}, retry=retry)


BENCHMARKS: list[Benchmark] = [who_am_i, list_runs]

"""A database that breaks its connections, again and again, delays the work and loses none of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.e2e.harness import ServerProcess, wait_for
from tests.e2e.simulated import Simulator
from tests.fixtures.postgres import PostgresServer

RUNS = 20
BREAKS = 20
BREAK = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'dstack%'"


def test_broken_connections_to_the_database_lose_nothing(
    make_server: Callable[..., ServerProcess], postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    with Simulator.started(tmp_path / "cloud") as simulator:
        shared = {"DSTACK_DATABASE_URL": postgres_url, "DSTACK_SERVER_DIR": str(tmp_path / "shared")}
        simulator.write_server_config(tmp_path / "shared")
        server = make_server(**shared, DSTACK_LOCAL_BACKEND="off").start()
        simulator.apply_fleet(server, nodes=2)
        for number in range(RUNS):
            env = {"DSTACK_SIM_DURATION": "2", "DSTACK_SIM_LOG_LINES": "100"}
            server.submit(f"run-{number}", ["work"], env=env, retry=True)
        breaks = iter(range(BREAKS))

        def all_ended_meanwhile() -> bool:
            if next(breaks, None) is not None:
                postgres.run_sql(BREAK)
            return not server.has_active_runs()

        wait_for("all runs to end", all_ended_meanwhile, 60)
        assert Counter(run["status"] for run in server.list_runs()) == {"done": RUNS}
        assert set(simulator.starts().values()) == {1}
        assert len(simulator.starts()) == RUNS
        assert "Traceback" not in server.output

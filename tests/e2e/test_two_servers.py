"""Two servers on one PostgreSQL share the work; one is killed midway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import ServerProcess, wait_for
from tests.e2e.simulated import Simulator

RUNS = 200


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    with Simulator.started(tmp_path / "cloud") as simulator:
        yield simulator


@pytest.mark.timeout(420)
def test_two_servers_share_200_runs_and_one_is_killed_midway(
    make_server: Callable[..., ServerProcess], postgres_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    shared = {"DSTACK_DATABASE_URL": postgres_url, "DSTACK_SERVER_DIR": str(tmp_path / "shared")}
    shared["DSTACK_LOCAL_BACKEND"] = "off"  # this machine would run the jobs for real
    simulator.write_server_config(tmp_path / "shared")
    first = make_server("first", **shared).start()
    second = make_server("second", **shared).start()
    simulator.apply_fleet(first, nodes=8)
    names = [f"shared-{number}" for number in range(RUNS)]
    for number, name in enumerate(names):
        server = second if number % 2 or number > RUNS // 2 else first
        server.submit(name, ["work"], env={"DSTACK_SIM_DURATION": "0.5"}, retry=True)
        if number == RUNS // 2:
            first.kill()

    try:
        wait_for("all runs to end", lambda: not second.has_active_runs(), timeout=300)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_unfinished(second)}\n{second.output[-20_000:]}") from error
    runs = {run["run_spec"]["run_name"]: run["status"] for run in second.list_runs()}
    assert set(runs) == set(names)
    assert Counter(runs.values()) == {"done": RUNS}
    starts = simulator.starts()
    assert len(starts) == RUNS
    assert set(starts.values()) == {1}


def _unfinished(server: ServerProcess) -> str:
    """What stands still, for the message of a failure."""
    active = [run for run in server.list_runs() if run["status"] not in ("done", "failed", "terminated")]
    submissions = [job["job_submissions"][-1] for run in active for job in run["jobs"]]
    return "\n".join(str(submission) for submission in submissions[:20])

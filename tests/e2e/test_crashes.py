"""`kill -9` of the server and of the agent at every step of a run: nothing lost, run twice or left over."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.harness import ServerProcess, agent_call, agent_pid, processes_with, unique, wait_for

MakeServer = Callable[..., ServerProcess]

POINTS = ("before-record", "after-record", "before-effect", "after-effect", "before-facts", "after-facts")
KINDS = ("placement", "instance", "job", "run")
CRASHES = [f"{kind}:{point}:{nth}" for kind in KINDS for point in POINTS for nth in (1, 2, 3)]
BATCHES = [CRASHES[start::24] for start in range(24)]


def submit_witness(server: ServerProcess, name: str, witness: Path) -> None:
    """A task that leaves a line in `witness` each time it is started."""
    server.submit(name, [f"echo {name} >> {witness}", "echo first", "sleep 0.05", "echo last"])


def assert_ran_once(server: ServerProcess, name: str, witness: Path) -> None:
    """One start, one whole log, one submission, nothing left on the host."""
    run = server.wait_run(name, "done", "failed", "terminated")
    assert run["status"] == "done", run
    assert witness.read_text() == f"{name}\n"
    assert server.log(name) == b"first\nlast\n"
    assert [len(job["job_submissions"]) for job in run["jobs"]] == [1]
    wait_for("the task to be forgotten", lambda: agent_call(server.home, "GET", "/v1/tasks")["tasks"] == [])


def warm_up(server: ServerProcess) -> None:
    """The local agent is started by the first run."""
    name = unique("warm-up")
    server.submit(name, ["true"])
    server.wait_run(name, "done")


def submit_until_death(server: ServerProcess, name: str, witness: Path) -> bool:
    """Submits as soon as the server answers; True when the server died before the run was over."""
    assert server.process is not None
    submitted = False
    while server.process.poll() is None:
        try:
            if not submitted:
                submit_witness(server, name, witness)
                submitted = True
            elif server.run(name)["status"] == "done":
                return False
        except OSError:
            pass  # not up yet, or just killed: the loop's condition tells which
        time.sleep(0.01)
    assert server.process.returncode == -signal.SIGKILL, server.output
    return True


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: batch[0].replace(":", "-"))
def test_a_server_killed_at_any_point_loses_and_doubles_nothing(
    make_server: MakeServer, tmp_path: Path, batch: list[str]
) -> None:
    server = make_server()
    for crash_at in batch:
        name, witness = unique("crash"), tmp_path / f"witness-{crash_at.replace(':', '-')}"
        server.start(wait=False, DSTACK_TEST_CRASH_AT=crash_at)
        if submit_until_death(server, name, witness):
            server.start()
            if name not in {run["run_spec"]["run_name"] for run in server.list_runs()}:
                submit_witness(server, name, witness)
        assert_ran_once(server, name, witness)
        assert server.stop() == 0


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.3, 0.6])
def test_an_agent_killed_at_any_moment_loses_and_doubles_nothing(
    server: ServerProcess, tmp_path: Path, delay: float
) -> None:
    warm_up(server)
    name, witness = unique("agent"), tmp_path / "witness"
    pid = agent_pid(server.home)
    server.submit(name, [f"echo {name} >> {witness}", "echo first", "sleep 0.4", "echo last"])
    time.sleep(delay)  # where in the task's life the kill falls, not a wait for anything
    os.kill(pid, signal.SIGKILL)
    assert_ran_once(server, name, witness)


def test_a_run_is_placed_on_this_machine_though_its_agent_had_ended(server: ServerProcess, tmp_path: Path) -> None:
    warm_up(server)
    assert server.stop() == 0
    os.kill(agent_pid(server.home), signal.SIGKILL)
    server.start()
    name, witness = unique("placed"), tmp_path / "witness"
    submit_witness(server, name, witness)
    assert_ran_once(server, name, witness)


def test_a_stopped_run_frees_everything_though_the_server_dies(make_server: MakeServer) -> None:
    server = make_server().start()
    name, marker = unique("stop"), unique("marker")
    server.submit(name, ["sleep 1000"], env={"MARKER": marker})
    server.wait_run(name, "running")
    server.post("/api/project/main/runs/stop", {"runs_names": [name], "abort": False})
    server.kill()
    server.start()
    run = server.wait_run(name, "terminated")
    assert run["termination_reason"] == "stopped_by_user"
    wait_for("the job's processes to be gone", lambda: not processes_with(f"MARKER={marker}"))
    fleets = server.post("/api/project/main/fleets/list", {})
    assert [instance["busy_blocks"] for fleet in fleets for instance in fleet["instances"]] == [0]


def test_a_million_lines_arrive_once_and_in_order_though_server_and_agent_die(server: ServerProcess) -> None:
    name = unique("lines")
    server.submit(name, ["seq 1 1000000"])
    wait_for("some of the log", lambda: stored(server, name) > 100_000)
    os.kill(agent_pid(server.home), signal.SIGKILL)
    before = stored(server, name)
    wait_for("more of the log", lambda: stored(server, name) > before or server.run(name)["status"] == "done")
    server.kill()
    server.start()
    server.wait_run(name, "done", timeout=90)
    expected = subprocess.run(["seq", "1", "1000000"], check=True, capture_output=True).stdout
    assert server.log(name) == expected


def stored(server: ServerProcess, name: str) -> int:
    """Bytes of the run's log files in the store."""
    folder = server.home / ".dstack/server/projects/main/logs" / name
    return sum(file.stat().st_size for file in folder.rglob("job.log"))

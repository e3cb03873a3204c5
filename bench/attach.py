"""How quickly one is in a job."""

from __future__ import annotations

import os
import pty
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.harness import ServerProcess, clean_environment, free_port

from bench.measure import Benchmark, Result, at_most, running_server, seconds_of

RESOURCES = {"cpu": "1..", "memory": "0.1GB..", "disk": "0.1GB.."}
LIMIT_SECONDS = 0.5
TIMES = 7


def attach_prompt(folder: Path) -> list[Result]:
    """`dstack attach` and then `ssh RUN` up to the shell's prompt, by the door's port and by the server's URL"""
    results = []
    for way, port in (("port", str(free_port())), ("WebSocket", "off")):
        with running_server(folder / way, DSTACK_SERVER_SSH_PORT=port) as server:
            server.submit("bench", ["sleep 1000"], resources=RESOURCES)
            server.wait_run("bench", "running")
            _attach_and_prompt(server)
            seconds = statistics.median(_attach_and_prompt(server) for _ in range(TIMES))
            results.append(at_most(f"attach to a prompt, by {way}", LIMIT_SECONDS, seconds, "s"))
            with _Attached(server):
                seconds = statistics.median(seconds_of(lambda: _prompt(server)) for _ in range(TIMES))
            results.append(at_most(f"ssh to a prompt while attached, by {way}", LIMIT_SECONDS, seconds, "s"))
            server.post("/api/project/main/runs/stop", {"runs_names": ["bench"], "abort": True})
            server.wait_run("bench", "terminated")
    return results


class _Attached:
    """`dstack attach bench` until the block ends."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dstack", "attach", "bench"],
            env=clean_environment(self._server.home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        said = ""
        for line in self._process.stdout:
            said += line
            if line.startswith("Ctrl-C leaves it"):
                return
        raise RuntimeError(f"dstack attach ended: {said}")

    def __exit__(self, *exc_info: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=30)


def _attach_and_prompt(server: ServerProcess) -> float:
    started = time.perf_counter()
    with _Attached(server):
        _prompt(server)
        return time.perf_counter() - started


def _prompt(server: ServerProcess) -> None:
    """A terminal in the job: returns when the shell has answered what was typed, which needs its prompt."""
    inside, outside = pty.openpty()
    command = ["ssh", "-tt", "-F", str(server.home / ".ssh/config"), "bench"]
    process = subprocess.Popen(
        command, stdin=outside, stdout=outside, stderr=outside, env=clean_environment(server.home), close_fds=True
    )
    os.close(outside)
    try:
        said = b""
        while b"# " not in said and b"$ " not in said:
            said += os.read(inside, 4096)
    finally:
        process.kill()
        process.wait()
        os.close(inside)


BENCHMARKS: list[Benchmark] = [attach_prompt]

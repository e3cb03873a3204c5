"""A real server whose services are answered by nginx and by `bench.replica`, and plain nginx beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tests.e2e.harness import ROOT, TOKEN, ServerProcess, clean_environment, free_port, wait_for

from bench.measure import process_of, running_server
from bench.nginx import files_command, reverse_proxy

RUNS = {"project_name": "main", "limit": 100, "job_submissions_limit": 1}
"""A page of `runs/list`."""
SMALL = {"cpu": "1..", "memory": "0..", "disk": "0.."}


@dataclass(frozen=True)
class Published:
    """The same files and the same replica: directly, by nginx, and as services of a server (`auth: true`)."""

    server: ServerProcess
    process: psutil.Process
    """Of the server."""
    nginx: psutil.Process
    nginx_port: int
    files_port: int
    replica_port: int

    def urls(self, path: str) -> tuple[str, str, str]:
        """Of one of the files: directly, by nginx, by our proxy."""
        direct, nginx = (f"http://127.0.0.1:{port}{path}" for port in (self.files_port, self.nginx_port))
        return direct, nginx, f"{self.server.url}/proxy/services/main/files{path}"

    def replica_ways(self, path: str) -> tuple[tuple[int, str], tuple[int, str], tuple[int, str]]:
        """Ports and paths of the replica, in the same order."""
        ours = (self.server.port, f"/proxy/services/main/replica{path}")
        return (self.replica_port, path), (self.nginx_port, f"/replica{path}"), ours

    def memory(self) -> float:
        """Resident memory of the server, in MB."""
        return float(self.process.memory_info().rss) / 1048576


@contextlib.contextmanager
def published(folder: Path, *prefix: str, **environment: str) -> Iterator[Published]:
    """`prefix`: what the server is started with."""
    files, replica, nginx = free_port(), free_port(), free_port()
    with (
        reverse_proxy(folder, nginx, f"127.0.0.1:{files}", f"127.0.0.1:{replica}") as reverse,
        running_server(folder, *prefix, **environment) as server,
    ):
        _publish(server, "files", files, files_command(folder, files))
        path = f"PYTHONPATH={ROOT / 'src'}:{ROOT}"
        _publish(server, "replica", replica, ["env", path, sys.executable, "-m", "bench.replica", str(replica)])
        yield Published(server, process_of(server), reverse, nginx, files, replica)


def _publish(server: ServerProcess, name: str, port: int, command: list[str]) -> None:
    """Until it answers."""
    configuration = {
        "type": "service",
        "port": port,
        "commands": [f"exec {shlex.join(command)}"],
        "resources": SMALL,
    }
    spec = {"run_name": name, "configuration": configuration}
    server.post("/api/project/main/runs/apply", {"plan": {"run_spec": spec}, "force": False})
    wait_for(f"the service {name}", lambda: _answers(server, name), 60)


def _answers(server: ServerProcess, name: str) -> bool:
    path = "1k" if name == "files" else "stream?count=1&every=0"
    server.call("GET", f"/proxy/services/main/{name}/{path}")
    return True


@contextlib.contextmanager
def program(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One of the programs of this package; ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**clean_environment(folder), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class ListingRuns:
    """Asks `runs/list` again and again on one connection, as a user interface does."""

    def __init__(self, server: ServerProcess, every: float = 0.02) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._every = every

    def until(self, process: subprocess.Popen[str]) -> list[float]:
        """Milliseconds each took, sorted, until that process has ended."""
        times = []
        while process.poll() is None:
            times.append(self._ask())
            time.sleep(self._every)
        return sorted(times)

    def for_seconds(self, seconds: float) -> list[float]:
        times = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            times.append(self._ask())
            time.sleep(self._every)
        return sorted(times)

    def _ask(self) -> float:
        start = time.perf_counter()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        self._connection.request("POST", "/api/runs/list", json.dumps(RUNS), headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"runs/list: {answer.status} {data!r}")
        return (time.perf_counter() - start) * 1000


def p99(times: list[float]) -> float:
    """Of sorted figures."""
    return times[min(len(times) - 1, len(times) * 99 // 100)]


def stream(folder: Path, way: tuple[int, str], connections: int, events: int) -> dict[str, Any]:
    """What `bench.clients` tells of so many event streams by that way, opened one after the other."""
    port, path = way
    arguments = ("streams", str(port), path, TOKEN, str(connections), "1", str(events))
    with program(folder, "bench.clients", *arguments) as clients:
        assert clients.stdout is not None
        answer: dict[str, Any] = json.loads(clients.stdout.read())
        return answer

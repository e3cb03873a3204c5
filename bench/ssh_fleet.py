"""Fleets of real hosts: an sshd and nothing else in a network of their own each, the agent installed for real."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e.harness import ServerProcess, wait_for
from tests.fixtures.docker import BUSYBOX_IMAGE
from tests.fixtures.ssh_hosts import SSHNetwork, lacks, running_network

from bench.many_hosts import apply_fleet
from bench.measure import Benchmark, Result, at_most, running_server

SINGLES = 3
MANY = 20
JOBS = 7
SMALL = {"cpu": "1..", "memory": "0..", "disk": "0.."}


def ssh_fleet(folder: Path) -> list[Result]:
    """hosts over SSH from `apply` to `idle`, one and 20 at once; a container on a warm host to its first line"""
    if lacks():
        raise RuntimeError(f"needs {lacks()}")
    with running_network() as network, running_server(folder, DSTACK_LOCAL_BACKEND="off") as server:
        hosts = [network.add() for _ in range(SINGLES + MANY)]
        singles = [
            _to_idle(server, network, f"single-{number}", [host.address])
            for number, host in enumerate(hosts[1:SINGLES])
        ]
        hosts[0].start_docker()
        singles.append(_to_idle(server, network, "docker", [hosts[0].address]))
        many = _to_idle(server, network, "many", [host.address for host in hosts[SINGLES:]])
        lines = [_to_first_line(server, f"job-{number}") for number in range(JOBS)]
        return [
            at_most("a host over SSH, apply to idle", 5, statistics.median(singles), "s"),
            Result("  the first of a server (packs the agent)", "", f"{singles[0]:.3g} s"),
            at_most(f"{MANY} hosts over SSH, apply to all idle", 15, many, "s"),
            at_most("accepted to first line of a container, warm host", 1, statistics.median(lines), "s"),
            Result("  the first one, and the slowest", "", f"{lines[0]:.3g} s, {max(lines):.3g} s"),
        ]


def _to_idle(server: ServerProcess, network: SSHNetwork, name: str, addresses: list[str]) -> float:
    """Seconds from asking for a fleet of these hosts until all of them are idle."""
    key = {"public": "", "private": network.key_path.read_text()}
    ssh_config = {"user": "root", "ssh_key": key, "hosts": addresses}
    configuration = {"type": "fleet", "name": name, "ssh_config": ssh_config}
    start = time.monotonic()
    apply_fleet(server, {"configuration": configuration, "profile": {"name": "default"}})
    wait_for(f"{name} to be idle", partial(_are_idle, server, name), 120)
    return time.monotonic() - start


def _are_idle(server: ServerProcess, name: str) -> bool:
    fleet: dict[str, Any] = server.post("/api/project/main/fleets/get", {"name": name})
    return {instance["status"] for instance in fleet["instances"]} == {"idle"}


def _to_first_line(server: ServerProcess, name: str) -> float:
    """Seconds from the answer that accepts a task with an image that is there to its first stored line."""
    server.submit(name, ["echo hello"], image=BUSYBOX_IMAGE, fleets=["docker"], resources=SMALL)
    accepted = time.monotonic()
    wait_for("the first line", partial(server.log, name), 60)
    seconds = time.monotonic() - accepted
    server.wait_run(name, "done")
    wait_for("the host to be free", partial(_are_idle, server, "docker"), 30)
    return seconds


BENCHMARKS: list[Benchmark] = [ssh_fleet]

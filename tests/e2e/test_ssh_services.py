"""Services whose replicas run on hosts of an SSH fleet, called through the server."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.harness import ServerProcess, wait_for
from tests.e2e.on_prem import apply, ssh_fleet, wait_idle
from tests.e2e.web import Service
from tests.fixtures.docker import BUSYBOX_IMAGE
from tests.fixtures.ssh_hosts import SSHHost, SSHNetwork


class FarService(Service):
    """Its program comes with the configuration: the hosts have files of their own."""

    def configuration(self, version: str, **more: Any) -> dict[str, Any]:
        configuration = super().configuration(version, fleets=["onprem"], **more)
        program = (self.folder / "program.py").read_text()
        configuration["env"] |= {"PROGRAM": program, "ILL": "/tmp/ill-"}
        if "image" not in more:
            configuration["commands"] = ['exec python3 -c "$PROGRAM"']
        return configuration

    def jobs_that_answer(self) -> set[str]:
        answers = [self.ask() for _ in range(12)]
        return {answer["job"] for status, answer in answers if status == 200}


def carriers(server: ServerProcess) -> list[psutil.Process]:
    """The server's `ssh` processes that forward."""
    assert server.process is not None
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "ssh" and "-T" in child.cmdline():
                found.append(child)
    return found


@pytest.fixture
def fleet(server: ServerProcess, ssh_network: SSHNetwork) -> Callable[[int], list[SSHHost]]:
    """`fleet(2)`: so many idle hosts."""

    def make(count: int) -> list[SSHHost]:
        hosts = [ssh_network.add() for _ in range(count)]
        apply(server, ssh_fleet(ssh_network, [host.address for host in hosts]))
        wait_idle(server, count)
        return hosts

    return make


@pytest.mark.timeout(300)
def test_replicas_on_two_hosts_answer_though_tunnels_and_hosts_go(
    server: ServerProcess, fleet: Callable[[int], list[SSHHost]], tmp_path: Path
) -> None:
    hosts = fleet(2)
    service = FarService(server, tmp_path)
    service.apply("one", replicas=2)
    wait_for("both replicas", lambda: len(service.jobs_that_answer()) == 2, 60)
    assert len(carriers(server)) == 2
    assert list((server.home / ".dstack/server/tunnels").iterdir()) == []
    with service.requests() as seen:
        for _ in range(2):
            for carrier in carriers(server):
                carrier.kill()
            wait_for("both replicas again", lambda: len(service.jobs_that_answer()) == 2)
            assert [service.ask("slow")[0] for _ in range(2)] == [200, 200]  # whoever met the break has ended
        hosts[0].stop()
        wait_for("the one that is left", lambda: len(service.jobs_that_answer()) == 1, 60)
        assert len({service.ask()[1]["job"] for _ in range(5)}) == 1
    assert set(seen) == {200}, seen
    assert "Traceback" not in server.output
    server.post("/api/project/main/runs/stop", {"runs_names": ["web"], "abort": False})
    wait_for("closed tunnels", lambda: carriers(server) == [], 60)


@pytest.mark.timeout(300)
def test_a_far_service_wakes_is_probed_and_replaced(
    server: ServerProcess, fleet: Callable[[int], list[SSHHost]], tmp_path: Path
) -> None:
    fleet(2)
    service = FarService(server, tmp_path)
    probe = {"type": "http", "url": "/health", "interval": "1s", "ready_after": 2}
    scaling = {"metric": "rps", "target": 1000, "scale_down_delay": "1h"}
    more = {"replicas": "0..1", "scaling": scaling, "probes": [probe]}
    service.apply("one", **more)
    assert server.wait_run("web", "pending")["jobs"] == []
    assert service.ask() == (200, {"version": "one", "job": service.replicas()[0]["id"]})
    assert service.replicas()[0]["probes"][0]["success_streak"] >= 2
    with service.requests() as seen:
        service.apply("two", **more)
        wait_for("the new version", service.is_settled(1, 1), 90)
        assert service.versions() == {"two"}
    assert set(seen) == {200}, seen


@pytest.mark.timeout(300)
def test_a_container_of_a_far_host_is_reached_at_its_published_port(
    server: ServerProcess, ssh_network: SSHNetwork, tmp_path: Path
) -> None:
    host = ssh_network.add()
    host.start_docker()
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)
    service = FarService(server, tmp_path)
    serve = f"mkdir /www; echo '\"here\"' > /www/index.html; exec httpd -f -p {service.port} -h /www"
    configuration = service.configuration("one", image=BUSYBOX_IMAGE, commands=[serve])
    spec = {"run_name": "web", "configuration": configuration}
    server.post("/api/project/main/runs/apply", {"plan": {"run_spec": spec}, "force": False})

    def answers() -> bool:
        try:
            return service.ask() == (200, "here")
        except (json.JSONDecodeError, http.client.HTTPException):
            return False

    wait_for("the container", answers, 60)

"""SSH fleets: hosts with an sshd and nothing else become a cluster, and run jobs."""

from __future__ import annotations

from typing import Any

from tests.e2e.harness import Cli, ServerProcess, wait_for
from tests.fixtures.ssh_hosts import SSHNetwork


def ssh_fleet(network: SSHNetwork, hosts: list[Any], **ssh: Any) -> dict[str, Any]:
    key = {"public": "", "private": network.key_path.read_text()}
    ssh_config = {"user": "root", "ssh_key": key, "hosts": hosts, **ssh}
    configuration = {"type": "fleet", "name": "onprem", "ssh_config": ssh_config}
    return {"configuration": configuration, "profile": {"name": "default"}}


def apply(server: ServerProcess, spec: dict[str, Any]) -> dict[str, Any]:
    current = server.post("/api/project/main/fleets/get_plan", {"spec": spec})["current_resource"]
    body = {"plan": {"spec": spec, "current_resource": current}, "force": False}
    fleet: dict[str, Any] = server.post("/api/project/main/fleets/apply", body)
    return fleet


def instances(server: ServerProcess) -> list[dict[str, Any]]:
    fleet = server.post("/api/project/main/fleets/get", {"name": "onprem"})
    found: list[dict[str, Any]] = fleet["instances"]
    return found


def wait_idle(server: ServerProcess, count: int) -> list[dict[str, Any]]:
    def idle() -> list[dict[str, Any]] | None:
        found = instances(server)
        return found if [one["status"] for one in found] == ["idle"] * count else None

    wait_for(f"{count} idle hosts, of {instances(server)}", idle, 60)
    return instances(server)


def test_a_host_becomes_idle_runs_a_job_and_is_left_as_it_was(cli: Cli, ssh_network: SSHNetwork) -> None:
    server = cli.server
    host = ssh_network.add()
    fleet = apply(server, ssh_fleet(ssh_network, [host.address]))
    assert "private" not in str(fleet)
    (instance,) = wait_idle(server, 1)
    assert instance["hostname"] == host.address
    assert instance["instance_type"]["resources"]["cpus"] > 0
    server.submit("far", ["hostname; echo done"], fleets=["onprem"])
    server.wait_run("far", "done")
    assert cli("logs", "far") == (0, f"{host.name}\ndone\n")
    server.post("/api/project/main/fleets/delete", {"names": ["onprem"]})
    wait_for("the agent to be gone", lambda: "agent.pyz" not in host.run("ps ax || true"))

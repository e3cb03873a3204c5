"""Fleet `onprem` on the hosts of an `SSHNetwork`, through the REST API."""

from __future__ import annotations

from typing import Any

from tests.e2e.harness import ServerProcess, wait_for
from tests.fixtures.ssh_hosts import SSHHost, SSHNetwork


def ssh_fleet(where: SSHNetwork, hosts: list[Any], **ssh: Any) -> dict[str, Any]:
    key = {"public": "", "private": where.key_path.read_text()}
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


def instance_of(server: ServerProcess, host: SSHHost) -> dict[str, Any]:
    return {one["hostname"]: one for one in instances(server)}[host.address]


def wait_told(server: ServerProcess, host: SSHHost, words: str) -> None:
    """Until that is what stands in the way of the host, which is tried again."""

    def told() -> bool:
        found = instance_of(server, host)
        return found["status"] == "pending" and words in (found["termination_reason_message"] or "")

    wait_for(f"{words!r}, in {instance_of(server, host)}", told, 60)


def job_history(server: ServerProcess, run_name: str) -> str:
    """The events of its jobs, in their order."""
    wanted = {"within_runs": [server.run(run_name)["id"]], "include_target_types": ["job"], "ascending": True}
    return "\n".join(event["message"] for event in server.post("/api/events/list", wanted))

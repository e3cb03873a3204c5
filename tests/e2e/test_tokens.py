"""Named tokens and failed attempts at a real server: its REST API and a service behind its proxy."""

from __future__ import annotations

import http.client

import pytest
from tests.e2e.harness import TOKEN, ApiError, Cli, ServerProcess, wait_for


def status_of(server: ServerProcess, token: str) -> tuple[int, str | None]:
    """Of the service, and how long to wait."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", "/proxy/services/main/hello/", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Retry-After")
    finally:
        connection.close()


def test_b18_b19_a_token_for_services_and_too_many_wrong_ones(cli: Cli, free_port: int) -> None:
    server = cli.server
    commands = [f"exec python3 -m http.server --bind 127.0.0.1 {free_port}"]
    configuration = {"type": "service", "port": free_port, "commands": commands}
    spec = {"run_name": "hello", "configuration": configuration}
    server.post("/api/project/main/runs/apply", {"plan": {"run_spec": spec}, "force": False})
    wait_for("the service", lambda: status_of(server, TOKEN)[0] == 200, 60)

    status, out = cli("token", "create", "site", "--services-only", "--expires", "1h")
    token = out.strip()
    assert (status, token[:7]) == (0, "dstack_")
    assert status_of(server, token)[0] == 200
    with pytest.raises(ApiError, match="services"):
        server.call("POST", "/api/project/main/runs/get", {"run_name": "hello"}, token=token)
    assert "services" in cli("token")[1]

    assert cli("token", "delete", "site", "-y")[0] == 0
    assert status_of(server, token)[0] == 403
    for _ in range(100):
        status, wait = status_of(server, "wrong")
        if status != 403:
            break
    assert (status, int(wait or 0) > 0) == (429, True)
    assert status_of(server, TOKEN)[0] == 200
    with pytest.raises(ApiError, match="429"):
        server.call("POST", "/api/users/get_my_user", token="wrong")

"""A gateway on a host with systemd and nginx, made by `dstack apply`: what it publishes, and what outlives it."""

from __future__ import annotations

import contextlib
import http.client
import sqlite3
import time

import pytest
from tests.e2e.harness import TOKEN, ApiError, Cli, ServerProcess, wait_for
from tests.e2e.on_prem import apply, wait_idle
from tests.fixtures.systemd_host import SystemdHost

GATEWAY = """\
type: gateway
name: front
backend: ssh
domain: "*.${{{{ run.project_name }}}}.example"
certificate: null
ssh_config:
  user: {user}
  identity_file: {key}
  hosts: [{address}]
"""
SERVICE = """\
type: service
name: {name}
fleets: [{fleet}]
commands: [echo {name} > index.html, python3 -m http.server 8000]
port: 8000
"""


SCALING = """\
replicas: 0..1
scaling: {metric: rps, target: 100, window: 30, scale_down_delay: 1s}
"""


def ask(host: SystemdHost, name: str, token: str | None = TOKEN, path: str = "/index.html") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host.address, 80, timeout=10)
    headers = {"Host": f"{name}.main.example"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture
def gateway_host(systemd_host: SystemdHost) -> SystemdHost:
    """As packages of nginx leave it."""
    systemd_host.run("mkdir -p /var/log/nginx /var/lib/nginx /etc/nginx/sites-enabled")
    return systemd_host


def add_fleet(cli: Cli, host: SystemdHost) -> None:
    """The gateway's host is one of a fleet, too."""
    key = {"public": "", "private": host.key_path.read_text()}
    ssh_config = {"user": host.user, "ssh_key": key, "hosts": [host.address]}
    configuration = {"type": "fleet", "name": "onprem", "ssh_config": ssh_config}
    apply(cli.server, {"configuration": configuration, "profile": {"name": "default"}})
    wait_idle(cli.server, 1)


def publish(cli: Cli, host: SystemdHost, name: str, fleet: str) -> None:
    cli.write(SERVICE.format(name=name, fleet=fleet), "service.dstack.yml")
    status, output = cli("apply", "-y", "-d", "-f", "service.dstack.yml")
    assert status == 0, output
    run = cli.server.wait_run(name, "running")
    assert run["service"]["url"] == f"http://{name}.main.example"
    wait_for(f"{name} at the gateway", lambda: ask(host, name) == (200, f"{name}\n".encode()))


@pytest.mark.timeout(240)
def test_services_on_a_gateway(cli: Cli, gateway_host: SystemdHost) -> None:
    host, server = gateway_host, cli.server
    cli.write(GATEWAY.format(user=host.user, key=host.key_path, address=host.address), "gateway.dstack.yml")
    status, output = cli("apply", "-y", "-f", "gateway.dstack.yml")
    assert (status, "running" in output, "BEGIN" in output) == (0, True, False), output
    events = cli("event", "--within-gateway", "front")[1]
    assert "Gateway replica status changed PROVISIONING -> RUNNING" in " ".join(events.split()), events
    publish(cli, host, "near", "local")
    add_fleet(cli, host)
    publish(cli, host, "far", "onprem")
    for name in ("near", "far"):
        assert ask(host, name, token=None)[0] == ask(host, name, token="wrong")[0] == 403
    assert ask(host, "nobody")[0] == 404
    with pytest.raises(ApiError, match="404"):
        server.call("GET", "/proxy/services/main/far/index.html")
    wait_for("the counts of requests", lambda: told_requests(server, "far") > 0)
    sleeps_and_wakes(cli, host)

    before = host.run("cat ~ubuntu/dstack/version")
    server.kill()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert ask(host, "far") == (200, b"far\n")  # its token is remembered
    put_broken_package(host)
    server.start(DSTACK_GATEWAY_PACKAGE_URL="file:///tmp/dstack-0.0.1-py3-none-any.whl")
    wait_for("the near one again", lambda: ask(host, "near") == (200, b"near\n"), 60)
    assert "is not updated: The gateway app does not answer" in server.output
    assert "No module named" in server.output  # in the words of the app's journal
    assert host.run("cat ~ubuntu/dstack/version") == before

    for name in ("near", "far"):
        server.post("/api/project/main/runs/stop", {"runs_names": [name], "abort": False})
        server.wait_run(name, "terminated")
    wait_for("both to be gone", lambda: {ask(host, name)[0] for name in ("near", "far")} == {404})
    assert "restrict,port-forwarding" in host.run("cat ~ubuntu/.ssh/authorized_keys")
    server.post("/api/project/main/fleets/delete", {"names": ["onprem"]})
    wait_for("its key to be gone", lambda: "restrict" not in host.run("cat ~ubuntu/.ssh/authorized_keys"))
    assert cli("gateway", "delete", "front", "-y")[0] == 0
    wait_for("the gateway to be gone", lambda: not server.post("/api/project/main/gateways/list", {}))
    left = host.run("ls -A /etc/nginx/sites-enabled /home/ubuntu /run | grep -i dstack; ls /etc/systemd/system")
    assert "dstack.gateway" not in left
    assert not host.is_active("dstack.gateway.service")


def sleeps_and_wakes(cli: Cli, host: SystemdHost) -> None:
    """By what nginx counts: there is no other way in."""
    service = SERVICE.format(name="sleepy", fleet="local") + SCALING
    cli.write(service, "service.dstack.yml")
    assert cli("apply", "-y", "-d", "-f", "service.dstack.yml")[0] == 0
    wait_for("the sleeping one at the gateway", lambda: ask(host, "sleepy")[0] == 503)
    wait_for("it to wake", lambda: ask(host, "sleepy") == (200, b"sleepy\n"), 60)
    wait_for("it to sleep again", lambda: cli.server.run("sleepy")["status"] == "pending", 90)
    cli.server.post("/api/project/main/runs/stop", {"runs_names": ["sleepy"], "abort": False})


def put_broken_package(host: SystemdHost) -> None:
    """A package of that name, without the app."""
    script = """
import zipfile
info = "dstack-0.0.1.dist-info"
with zipfile.ZipFile("/tmp/dstack-0.0.1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("dstack/__init__.py", "")
    wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: dstack\\nVersion: 0.0.1\\n")
    wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(info + "/RECORD", "dstack/__init__.py,,\\n")
"""
    host.run(f"python3 -c '{script}'")


def told_requests(server: ServerProcess, name: str) -> int:
    """What scaling sees."""
    path = server.home / ".dstack/server/data/sqlite.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        query = "SELECT sum(requests_60) FROM service_loads l JOIN runs r ON r.id = l.run_id WHERE run_name = ?"
        return int(database.execute(query, (name,)).fetchone()[0] or 0)

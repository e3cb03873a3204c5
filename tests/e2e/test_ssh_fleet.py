"""SSH fleets: hosts with an sshd and nothing else become a cluster, and run jobs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Cli, ServerProcess, wait_for
from tests.e2e.on_prem import apply, instances, job_history, ssh_fleet, wait_idle
from tests.fixtures.ssh_hosts import SSHHost, SSHNetwork
from tests.fixtures.systemd_host import SystemdHost

OLDER = '__version__ = "0.0.1"\n'


def test_a_host_becomes_idle_runs_a_job_and_is_left_as_it_was(cli: Cli, ssh_network: SSHNetwork) -> None:
    server = cli.server
    host = ssh_network.add()
    fleet = apply(server, ssh_fleet(ssh_network, [host.address]))
    assert "private" not in str(fleet)
    (instance,) = wait_idle(server, 1)
    assert instance["hostname"] == host.address
    logins = (host.folder / "log").read_text().count("Accepted publickey")
    assert logins == 1, "a second connection in the first pass could be to somebody else (better B16)"
    assert instance["instance_type"]["resources"]["cpus"] > 0
    server.submit("far", ["hostname; echo done"], fleets=["onprem"])
    server.wait_run("far", "done")
    assert cli("logs", "far") == (0, f"{host.name}\ndone\n")
    server.post("/api/project/main/fleets/delete", {"names": ["onprem"]})
    wait_for("the agent to be gone", lambda: "agent.pyz" not in host.run("ps ax || true"))


def test_what_is_wrong_with_a_host_is_told_and_tried_again(server: ServerProcess, ssh_network: SSHNetwork) -> None:
    locked, fake, good = ssh_network.add(), ssh_network.add(), ssh_network.add()
    authorized = locked.folder / "root/.ssh/authorized_keys"
    authorized.write_text("")
    hosts = [locked.address, {"hostname": fake.address, "host_key": locked.host_key}, good.address]
    apply(server, ssh_fleet(ssh_network, hosts))

    def told(host: SSHHost, words: str) -> bool:
        found = {one["hostname"]: one for one in instances(server)}[host.address]
        return found["status"] == "pending" and words in (found["termination_reason_message"] or "")

    wait_for("the refused login", lambda: told(locked, "refused the login"), 60)
    wait_for("the other key", lambda: told(fake, "shows another host key"), 60)
    wait_for(
        "the good host",
        lambda: {one["hostname"]: one["status"] for one in instances(server)}[good.address] == "idle",
        60,
    )
    authorized.write_text(f"{ssh_network.public_key}\n")
    wait_for(
        "the host that lets us in now",
        lambda: {one["hostname"]: one["status"] for one in instances(server)}[locked.address] == "idle",
        90,
    )


def test_hosts_come_and_go_with_the_file(server: ServerProcess, ssh_network: SSHNetwork) -> None:
    first, second = ssh_network.add(), ssh_network.add()
    apply(server, ssh_fleet(ssh_network, [first.address]))
    wait_idle(server, 1)
    apply(server, ssh_fleet(ssh_network, [second.address]))
    wait_for("only the second", lambda: [one["hostname"] for one in instances(server)] == [second.address], 60)
    wait_idle(server, 1)
    assert "agent.pyz" not in first.run("ps ax")
    apply(server, ssh_fleet(ssh_network, [first.address]))
    apply(server, ssh_fleet(ssh_network, [first.address, second.address]))  # while the second is let go of
    wait_for("both", lambda: [one["status"] for one in instances(server)] == ["idle", "idle"], 60)
    for host in (first, second):
        assert "agent.pyz" in host.run("ps ax")


def test_a_job_outlives_its_agent_its_server_and_the_connection(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, host = cli.server, ssh_network.add()
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)
    count = "i=0; while [ $i -lt 80 ]; do i=$((i+1)); echo $i; sleep 0.1; done"
    server.submit("long", [count], fleets=["onprem"])
    server.wait_run("long", "running")
    host.run("kill -9 $(cat /var/lib/dstack/agent.lock)")
    server.kill()
    host.run("pkill -f '[s]shd: root' || true")
    server.start()
    server.wait_run("long", "done")
    assert cli("logs", "long") == (0, "".join(f"{number}\n" for number in range(1, 81)))


def test_an_older_agent_is_replaced_under_a_running_job(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, host = cli.server, ssh_network.add()
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)
    script = "echo before; until [ -e /tmp/enough ]; do sleep 0.05; done; echo after"
    server.submit("long", [script], fleets=["onprem"])
    server.wait_run("long", "running")
    server.stop()
    current = host.run("sha256sum < /var/lib/dstack/agent.pyz")
    copy_as_older(host.folder / "var/lib/dstack/agent.pyz", host.folder / "tmp/older.pyz")
    host.run("python3 /tmp/older.pyz install --dir /var/lib/dstack")
    assert host.run("sha256sum < /var/lib/dstack/agent.pyz") != current
    server.start()
    wait_for(
        "the agent of the server's version",
        lambda: host.run("sha256sum < /var/lib/dstack/agent.pyz") == current,
        60,
    )
    assert server.run("long")["status"] == "running"
    host.run("touch /tmp/enough")
    server.wait_run("long", "done")
    assert cli("logs", "long") == (0, "before\nafter\n")


def copy_as_older(archive: Path, path: Path) -> None:
    """The same agent, but for the version that it tells."""
    with zipfile.ZipFile(archive) as newer, zipfile.ZipFile(path, "w") as older:
        for entry in newer.infolist():
            text = newer.read(entry)
            older.writestr(entry, OLDER if entry.filename == "dstack/__init__.py" else text)


def behind(jump: SSHHost, where: SSHNetwork) -> dict[str, Any]:
    """`proxy_jump`."""
    key = {"public": "", "private": where.key_path.read_text()}
    return {"hostname": jump.address, "user": "root", "identity_file": "id", "ssh_key": key}


def test_b16_a_host_behind_another_one_whose_key_is_pinned_too(
    server: ServerProcess, ssh_network: SSHNetwork
) -> None:
    jump, first, second = ssh_network.add(), ssh_network.add(), ssh_network.add()
    for inner in (first, second):
        inner.run(f"iptables -A INPUT -s {ssh_network.subnet}.1 -j DROP")
    through = behind(jump, ssh_network)
    apply(server, ssh_fleet(ssh_network, [first.address], proxy_jump=through))
    wait_idle(server, 1)
    server.submit("inner", ["echo in"], fleets=["onprem"])
    server.wait_run("inner", "done")
    jump.stop()
    jump.new_host_key()
    jump.start()
    apply(server, ssh_fleet(ssh_network, [first.address, second.address], proxy_jump=through))

    def refused() -> bool:
        words = f"root@{jump.address} shows another host key"
        return all(words in (one["termination_reason_message"] or "") for one in instances(server))

    wait_for(f"the refusals, in {instances(server)}", refused, 90)


def test_b16_a_changed_host_key_is_refused_and_the_host_stays(
    server: ServerProcess, ssh_network: SSHNetwork
) -> None:
    host = ssh_network.add()
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)
    host.stop()
    host.new_host_key()
    host.start()

    def refused() -> bool:
        (instance,) = instances(server)
        return instance["unreachable"] and "another host key" in (instance["termination_reason_message"] or "")

    wait_for("the refusal", refused, 90)
    assert [one["status"] for one in instances(server)] == ["idle"]
    server.post("/api/project/main/fleets/delete_instances", {"name": "onprem", "instance_nums": [0]})
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)


def test_nodes_of_a_task_meet_over_the_network_of_their_hosts(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, hosts = cli.server, [ssh_network.add(), ssh_network.add()]
    spec = ssh_fleet(ssh_network, [host.address for host in hosts], network=f"{ssh_network.subnet}.0/24")
    spec["configuration"]["placement"] = "cluster"
    apply(server, spec)
    wait_idle(server, 2)
    server.submit("meet", [f"python3 - <<'E'\n{RENDEZVOUS}\nE"], nodes=2, fleets=["onprem"])
    server.wait_run("meet", "done")
    code, output = cli("logs", "meet")
    assert code == 0
    assert "rank 0 of 2 met 1" in output


RENDEZVOUS = """
import os, socket, time
rank, count = int(os.environ["DSTACK_NODE_RANK"]), int(os.environ["DSTACK_NODES_NUM"])
master = os.environ["DSTACK_MASTER_NODE_IP"]
assert master == os.environ["DSTACK_NODES_IPS"].split()[0]
if rank == 0:
    with socket.create_server(("0.0.0.0", 29500)) as server:
        peer, _ = server.accept()
        print(f"rank 0 of {count} met", peer.recv(10).decode())
else:
    deadline = time.monotonic() + 60
    while True:
        try:
            with socket.create_connection((master, 29500), timeout=5) as peer:
                peer.sendall(str(rank).encode())
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
"""


@pytest.mark.timeout(240)
def test_b12_a_cut_cable_ends_nothing_and_loses_nothing(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, host = cli.server, ssh_network.add()
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)
    server.submit("whole", ["while [ ! -e /tmp/seen ]; do sleep 0.1; done"], fleets=["onprem"])
    server.wait_run("whole", "running")
    host.run("touch /tmp/seen")
    server.wait_run("whole", "done")
    server.submit(
        "cut", ["i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); echo $i; sleep 0.1; done"], fleets=["onprem"]
    )
    server.wait_run("cut", "running")
    host.cut()
    wait_for("a host out of sight", lambda: instances(server)[0]["unreachable"], 120)
    assert server.run("cut")["status"] == "running"
    host.mend()
    wait_for("the host", lambda: not instances(server)[0]["unreachable"], 60)
    host.run("touch /tmp/enough")
    server.wait_run("cut", "done")
    numbers = [int(line) for line in cli("logs", "cut")[1].splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 100
    assert job_history(server, "cut") == job_history(server, "whole")


def test_systemd_keeps_the_agent_over_a_reboot(cli: Cli, systemd_host: SystemdHost) -> None:
    server, host = cli.server, systemd_host
    key = {"public": "", "private": host.key_path.read_text()}
    ssh_config = {"user": host.user, "ssh_key": key, "hosts": [host.address]}
    configuration = {"type": "fleet", "name": "onprem", "ssh_config": ssh_config}
    apply(server, {"configuration": configuration, "profile": {"name": "default"}})
    wait_idle(server, 1)
    assert host.is_active("dstack-agent.service")
    server.submit("before", ["hostname; id -un"], fleets=["onprem"])
    server.wait_run("before", "done")
    assert cli("logs", "before") == (0, "systemd-host\nroot\n")
    host.reboot()
    wait_for("the agent after the reboot", lambda: host.is_active("dstack-agent.service"), 60)
    server.submit("after", ["echo again"], fleets=["onprem"], retry=True)
    server.wait_run("after", "done")
    server.post("/api/project/main/fleets/delete", {"names": ["onprem"]})
    wait_for("the unit to be gone", lambda: "dstack-agent" not in host.run("ls /etc/systemd/system"), 60)

"""What goes wrong on hosts: each host says its own fault in words, and jobs go on or are told right."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.harness import Cli, ServerProcess, wait_for
from tests.e2e.on_prem import apply, instance_of, instances, job_history, ssh_fleet, wait_idle, wait_told
from tests.fixtures.docker import BUSYBOX_IMAGE
from tests.fixtures.ssh_hosts import SSHNetwork

PYTHONS = sorted(
    {str(path.resolve()) for path in Path("/usr/bin").glob("python3*") if path.name[7:].strip(".0123456789") == ""}
)
TINY = {"cpu": "1..", "memory": "1GB..", "disk": "1GB.."}
COUNT = "i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); echo $i; sleep 0.05; done"


def assert_counted(output: str) -> None:
    numbers = [int(line) for line in output.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_each_host_says_what_it_lacks(server: ServerProcess, ssh_network: SSHNetwork) -> None:
    no_python, old_python, other_system, no_rights, gone, full, full_tmp = (ssh_network.add() for _ in range(7))
    no_python.hide(*PYTHONS)
    for path in PYTHONS:
        old_python.put(path, '#!/bin/sh\n[ "$1" = -c ] && exit 1\nexit 0\n')
    other_system.hide(*PYTHONS)
    other_system.put("/usr/bin/uname", "#!/bin/sh\necho FreeBSD\n")
    no_rights.add_user("plain", ssh_network.public_key)
    no_rights.run("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/run/docker.sock\")'")
    gone.stop()
    full.small_disk("/var/lib/dstack", "50m")
    full_tmp.small_disk("/tmp", "16k")
    hosts = [no_python, old_python, other_system, gone, full, full_tmp]
    entries = [host.address for host in hosts] + [{"hostname": no_rights.address, "user": "plain"}]
    apply(server, ssh_fleet(ssh_network, entries))
    wait_told(server, no_python, "has no Python 3.8 or newer; install python3 there")
    wait_told(server, old_python, "has no Python 3.8 or newer; install python3 there")
    wait_told(server, other_system, "runs FreeBSD; dstack needs Linux")
    wait_told(server, no_rights, "plain may not use Docker on plain@")
    wait_told(server, no_rights, "has no passwordless sudo")
    wait_told(server, gone, f"root@{gone.address} cannot be reached")
    wait_told(server, full, "is too full: 50 MiB are free for /var/lib/dstack, 100 MiB are needed")
    wait_told(server, full_tmp, "No space left on device")
    full.run("mount -o remount,size=200m /var/lib/dstack")
    gone.start()
    for host in (full, gone):
        wait_for("the host that is mended", lambda host=host: instance_of(server, host)["status"] == "idle", 90)


def test_an_image_is_asked_of_a_host_without_docker(server: ServerProcess, ssh_network: SSHNetwork) -> None:
    apply(server, ssh_fleet(ssh_network, [ssh_network.add().address]))
    wait_idle(server, 1)
    server.submit("image", ["true"], image=BUSYBOX_IMAGE, fleets=["onprem"], resources=TINY)
    run = server.wait_run("image", "failed")
    assert "Docker" in str(run["jobs"][0]["job_submissions"][-1]["termination_reason_message"])


def test_sshd_is_restarted_under_a_job(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, host = cli.server, ssh_network.add()
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)
    server.submit("count", [COUNT], fleets=["onprem"])
    server.wait_run("count", "running")
    before = logins(host.folder)
    host.restart_ssh()
    wait_for("a connection again", lambda: logins(host.folder) > before, 60)
    wait_for("the host in sight", lambda: not instances(server)[0]["unreachable"])
    host.run("touch /tmp/enough")
    server.wait_run("count", "done")
    assert_counted(cli("logs", "count")[1])
    assert job_history(server, "count").count("-> running") <= 1


def logins(folder: Path) -> int:
    return (folder / "log").read_text().count("Accepted publickey")


def test_the_disk_fills_up_under_a_job(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, host = cli.server, ssh_network.add()
    host.small_disk("/var/lib/dstack", "150m")
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)
    server.submit(
        "talks",
        ["while [ ! -e /tmp/go ]; do sleep 0.05; done; seq 50000"],
        fleets=["onprem"],
        resources={**TINY, "disk": "0.1GB.."},
    )
    server.wait_run("talks", "running")
    host.run("cat /dev/zero > /var/lib/dstack/filler 2>/dev/null || true; touch /tmp/go")
    told = "curl -s --unix-socket /var/lib/dstack/agent.sock http://agent/v1/tasks"
    wait_for("the agent to say so", lambda: "the disk of the host is full" in host.run(told))
    assert server.run("talks")["status"] == "running"
    host.run("rm /var/lib/dstack/filler")
    server.wait_run("talks", "done")
    assert cli("logs", "talks") == (0, "".join(f"{number}\n" for number in range(1, 50_001)))


@pytest.mark.parametrize("options", [(), ("--live-restore",)], ids=["ends-containers", "live-restore"])
def test_docker_is_restarted_under_a_job(cli: Cli, ssh_network: SSHNetwork, options: tuple[str, ...]) -> None:
    server, host = cli.server, ssh_network.add()
    host.start_docker(*options)
    apply(server, ssh_fleet(ssh_network, [host.address]))
    wait_idle(server, 1)
    wanted = {"image": BUSYBOX_IMAGE, "fleets": ["onprem"], "resources": TINY}
    script = "trap 'exit 143' TERM; " + COUNT.replace("/tmp", "/shared")
    server.submit("count", [script], volumes=["/tmp:/shared"], **wanted)
    server.wait_run("count", "running")
    host.stop_docker()
    assert server.run("count")["status"] == "running"
    host.start_docker(*options)
    if options:
        host.run("touch /tmp/enough")
        server.wait_run("count", "done")
    else:
        job = server.wait_run("count", "failed")["jobs"][0]["job_submissions"][-1]
        assert job["termination_reason"] == "container_exited_with_error"
        assert "Docker was stopped or restarted on the host" in job["termination_reason_message"]
    assert_counted(cli("logs", "count")[1])
    server.submit("next", ["echo works"], **wanted)
    server.wait_run("next", "done")
    assert cli("logs", "next") == (0, "works\n")

"""What goes wrong on hosts: each host says its own fault in words, and jobs go on or are told right."""

from __future__ import annotations

import base64
import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from tests.e2e.harness import Cli, ServerProcess, wait_for
from tests.e2e.on_prem import apply, instance_of, instances, job_history, ssh_fleet, wait_idle, wait_told
from tests.fixtures.docker import BUSYBOX_IMAGE
from tests.fixtures.ssh_hosts import SSHHost, SSHNetwork

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
    wait_mended(server, full)
    wait_mended(server, gone)


def wait_mended(server: ServerProcess, host: SSHHost) -> None:
    wait_for("the host that is mended", lambda: instance_of(server, host)["status"] == "idle", 90)


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


def test_clocks_of_hosts_are_an_hour_off(server: ServerProcess, ssh_network: SSHNetwork) -> None:
    """Jobs, their times and their output are as on any other host: nothing is decided by a host's clock."""
    ahead, behind = ssh_network.add(), ssh_network.add()
    ahead.set_clock("+1h")
    behind.set_clock("-1h")
    apply(server, ssh_fleet(ssh_network, [ahead.address, behind.address]))
    by_address = {one["hostname"]: one["name"] for one in wait_idle(server, 2)}
    began = datetime.now(timezone.utc)
    for name, host in (("ahead", ahead), ("behind", behind)):
        assert abs(clock_error(host)) > 3000
        script = ["for i in 1 2 3; do echo $i; sleep 0.1; done", "sleep 1000"]
        on_it = {"fleets": ["onprem"], "instances": [by_address[host.address]]}
        server.submit(name, script, max_duration=MAX_SECONDS, **on_it)
    for name in ("ahead", "behind"):
        run = server.wait_run(name, "terminated", "failed")
        job = run["jobs"][0]["job_submissions"][-1]
        assert job["termination_reason"] == "max_duration_exceeded"
        told = {"run_name": name, "job_submission_id": job["id"], "limit": 100}
        logs = server.post("/api/project/main/logs/poll", told)["logs"]
        assert [base64.b64decode(record["message"]) for record in logs] == [b"1\n", b"2\n", b"3\n"]
        times = [moment(record["timestamp"]) for record in logs]
        assert times == sorted(times)
        assert began - SLACK < times[0] <= times[-1] < datetime.now(timezone.utc) + SLACK
        assert began - SLACK < moment(job["submitted_at"]) < moment(job["finished_at"])
        assert moment(job["finished_at"]) < datetime.now(timezone.utc) + SLACK


def clock_error(host: SSHHost) -> float:
    """Of its agent, in seconds."""
    told = host.run("curl -s --unix-socket /var/lib/dstack/agent.sock http://agent/v1/info")
    return float(json.loads(told)["clock"]) - time.time()


MAX_SECONDS = 3
SLACK = timedelta(minutes=1)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


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

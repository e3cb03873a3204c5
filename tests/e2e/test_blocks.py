"""Several jobs on one host of an SSH fleet, each with its share: containers, and processes with GPUs."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.harness import Cli
from tests.e2e.on_prem import apply, instances, ssh_fleet, wait_idle
from tests.fixtures.docker import BUSYBOX_IMAGE
from tests.fixtures.ssh_hosts import SSHHost, SSHNetwork

SMALL = {"cpu": "1..", "memory": "1GB..", "disk": "1GB.."}
STAY = "while [ ! -e /tmp/shared/go ]; do sleep 0.05; done"
NVIDIA_SMI = """#!/bin/sh
for number in 0 1; do echo "GPU-$number, NVIDIA A100-SXM4-80GB, 81920, 550.54.15"; done
"""
"""What the vendor's tool says of two GPUs, to whatever it is asked at the agent's start."""


def inspect(host: SSHHost, name: str) -> dict[str, Any]:
    """What the kernel was told of the container of a run."""
    (found,) = json.loads(host.run(f"docker inspect $(docker ps -q --filter name={name}-0-0)"))
    return dict(found["HostConfig"])


def test_containers_have_their_share_and_a_network_of_their_own(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, host = cli.server, ssh_network.add()
    host.start_docker()
    host.run("mkdir -p /tmp/shared")
    apply(server, ssh_fleet(ssh_network, [{"hostname": host.address, "blocks": 2}]))
    (idle,) = wait_idle(server, 1)
    machine = idle["instance_type"]["resources"]
    wanted = {"image": BUSYBOX_IMAGE, "fleets": ["onprem"], "volumes": ["/tmp/shared:/tmp/shared"]}
    listen = "nc -l -p 8000 -e true & "
    for name in ("one", "two"):
        server.submit(name, [f"{listen}{STAY}; hostname"], resources=SMALL, **wanted)
    for name in ("one", "two"):
        server.wait_run(name, "running")
        told = inspect(host, name)
        assert told["NetworkMode"] == "bridge"
        assert told["NanoCpus"] == machine["cpus"] * 1_000_000_000 // 2
        assert told["Memory"] == machine["memory_mib"] // 2 * 2**20
    (instance,) = instances(server)
    assert (instance["busy_blocks"], instance["total_blocks"]) == (2, 2)
    host.run("touch /tmp/shared/go")
    for name in ("one", "two"):
        server.wait_run(name, "done")
    assert cli("logs", "one") != cli("logs", "two")

    host.run("rm /tmp/shared/go")
    all_of_it = {**SMALL, "cpu": f"{machine['cpus']}.."}
    server.submit("whole", [STAY], resources=all_of_it, **wanted)
    server.wait_run("whole", "running")
    told = inspect(host, "whole")
    assert (told["NetworkMode"], told["NanoCpus"], told["Memory"]) == ("host", 0, 0)
    host.run("touch /tmp/shared/go")
    server.wait_run("whole", "done")


def test_each_process_has_a_gpu_that_no_other_has(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, host = cli.server, ssh_network.add()
    (host.folder / "tmp/nvidia-smi").write_text(NVIDIA_SMI)
    host.run("mkdir /tmp/sbin /tmp/shared; install -m 755 /tmp/nvidia-smi /tmp/sbin")
    host.run("mount --bind /tmp/sbin /usr/local/sbin")
    apply(server, ssh_fleet(ssh_network, [{"hostname": host.address, "blocks": 2}]))
    (idle,) = wait_idle(server, 1)
    assert [gpu["name"] for gpu in idle["instance_type"]["resources"]["gpus"]] == ["A100-SXM4-80GB"] * 2
    wanted = {"fleets": ["onprem"], "resources": {**SMALL, "gpu": "A100:1"}}
    for name in ("one", "two"):
        server.submit(name, [f"echo $CUDA_VISIBLE_DEVICES of $DSTACK_GPUS_NUM; {STAY}"], **wanted)
    for name in ("one", "two"):
        server.wait_run(name, "running")
    server.submit("third", ["true"], **wanted)
    third = server.wait_run("third", "failed")
    assert third["jobs"][0]["job_submissions"][-1]["termination_reason"] == "failed_to_start_due_to_no_capacity"
    host.run("touch /tmp/shared/go")
    for name in ("one", "two"):
        server.wait_run(name, "done")
    assert sorted(cli("logs", name)[1] for name in ("one", "two")) == ["GPU-0 of 1\n", "GPU-1 of 1\n"]

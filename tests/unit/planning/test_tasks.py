"""What a job's host is told: variables, limits, GPUs, network, grace (reference: environment variables)."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from dstack.agent.protocol import TaskSpec
from dstack.core.images import Images
from dstack.core.instances import Disk, Gpu, Resources
from dstack.core.interpolation import InterpolationError
from dstack.core.job_specs import effective_run_spec, make_job_specs
from dstack.core.runs import RunSpec
from dstack.server.planning.tasks import (
    Host,
    Node,
    TaskContext,
    make_task,
    own_address,
    share_on,
    upper_ends,
)

IMAGES = Images.of("reg.example/base", "7", "26.04", "reg.example/dind:7")
HERE = Host("local", ("process", "container"), takes_whole=False, gpus=0)
WHOLE = Host("aws", ("container",))
PART = Host("aws", ("container",), takes_whole=False, gpus=1, cpus=4, memory_bytes=2**30)
JOB, RUN = uuid.UUID(int=5), uuid.UUID(int=6)


def context(job_num: int = 0, **configuration: Any) -> TaskContext:
    given = {"type": "task", "commands": ["true"], **configuration}
    spec = effective_run_spec(RunSpec.model_validate({"configuration": given}), run_name="r", ssh_key_pub=None)
    job = make_job_specs(spec, run_name="r", images=IMAGES)[job_num]
    nodes = tuple(Node(f"10.0.0.{number + 1}", 8) for number in range(job.jobs_per_replica))
    return TaskContext(JOB, RUN, "r", "main", None, job, nodes, {"key": "s3cret"})


def task(host: Host = HERE, job_num: int = 0, **configuration: Any) -> TaskSpec:
    return make_task(context(job_num, **configuration), host, IMAGES)


def test_the_variables_of_one_node() -> None:
    assert task().env == {
        "DSTACK_RUN_NAME": "r",
        "DSTACK_RUN_ID": str(RUN),
        "DSTACK_JOB_ID": str(JOB),
        "DSTACK_REPO_ID": "none",
        "DSTACK_NODES_NUM": "1",
        "DSTACK_NODE_RANK": "0",
        "DSTACK_NODES_IPS": "10.0.0.1",
        "DSTACK_MASTER_NODE_IP": "10.0.0.1",
        "DSTACK_GPUS_PER_NODE": "8",
        "DSTACK_GPUS_NUM": "8",
    }


def test_the_variables_of_the_second_of_two_nodes() -> None:
    env = task(job_num=1, nodes=2).env
    assert env["DSTACK_NODE_RANK"] == "1"
    assert env["DSTACK_NODES_NUM"] == "2"
    assert env["DSTACK_NODES_IPS"] == "10.0.0.1\n10.0.0.2"
    assert env["DSTACK_MASTER_NODE_IP"] == "10.0.0.1"
    assert (env["DSTACK_GPUS_PER_NODE"], env["DSTACK_GPUS_NUM"]) == ("8", "16")


def test_nodes_are_told_how_they_reach_each_other() -> None:
    given = replace(context(job_num=1, nodes=2), node_public_key="ssh-ed25519 AAAA r")
    assert make_task(given, WHOLE, IMAGES).ssh == {
        "key": "node-key",
        "public_key": "ssh-ed25519 AAAA r",
        "port": 10022,
        "addresses": ["10.0.0.1", "10.0.0.2"],
        "listen": "",
    }
    shared = replace(given, nodes=(Node("127.1.1.1"), Node("127.1.1.2")))
    assert (make_task(shared, HERE, IMAGES).ssh or {})["listen"] == "127.1.1.2"
    assert task().ssh is None


def test_later_variables_win() -> None:
    given = context(env={"A": "run", "DSTACK_RUN_NAME": "mine"})
    env = make_task(replace(given, instance_env={"A": "fleet", "B": "fleet"}), HERE, IMAGES).env
    assert (env["A"], env["B"], env["DSTACK_RUN_NAME"]) == ("run", "fleet", "mine")


def test_nodes_of_groups_are_named_in_commands() -> None:
    group = {
        "nodes": 1,
        "commands": ["ping ${{ groups[1].nodes[0].IP_ADDRESS }} ${{ groups[a].nodes[0].IP_ADDRESS }}"],
    }
    given = context(groups=[{**group, "name": "a"}, {**group, "name": "b"}], commands=[])
    nodes = (Node("10.0.0.1", 0, 0, "a", 0), Node("10.0.0.2", 0, 1, "b", 0))
    assert make_task(replace(given, nodes=nodes), HERE, IMAGES).commands[-1] == "ping 10.0.0.2 10.0.0.1"


def test_secrets_are_filled_in() -> None:
    made = task(WHOLE, image="i", env={"A": "x-${{ secrets.key }}", "B": "$${{ secrets.key }}"})
    assert (made.env["A"], made.env["B"]) == ("x-s3cret", "${{ secrets.key }}")
    auth = {"username": "u", "password": "${{ secrets.key }}"}
    assert task(WHOLE, image="i", registry_auth=auth).registry_password == "s3cret"
    with pytest.raises(InterpolationError, match="other"):
        task(env={"A": "${{ secrets.other }}"})


@pytest.mark.parametrize(
    ("host", "configuration", "limits"),
    [
        (HERE, {}, ("host", 0, 0, 0)),
        (HERE, {"image": "i"}, ("bridge", 0, 0, 0)),
        (HERE, {"image": "i", "nodes": 2}, ("host", 0, 0, 0)),
        (replace(HERE, gpus=2), {"image": "i"}, ("bridge", 2, 0, 0)),
        (WHOLE, {}, ("host", -1, 0, 0)),
        (PART, {}, ("bridge", 1, 4, 2**30)),
    ],
)
def test_network_and_limits(
    host: Host, configuration: dict[str, Any], limits: tuple[str, int, float, int]
) -> None:
    made = task(host, **configuration)
    assert (made.network_mode, made.gpu, made.cpu, made.memory_bytes) == limits


MACHINE = Resources(
    cpus=8, memory_mib=32768, gpus=[Gpu(name="L4", memory_mib=1)] * 4, spot=False, disk=Disk(size_mib=1)
)


@pytest.mark.parametrize(
    ("blocks", "total", "share"),
    [(1, 1, (-1, 0, 0)), (4, 4, (-1, 0, 0)), (1, 4, (1, 2, 8 * 2**30)), (3, 4, (3, 6, 24 * 2**30))],
)
def test_a_part_is_limited_to_what_it_has(blocks: int, total: int, share: tuple[int, float, int]) -> None:
    assert share_on(MACHINE, blocks=blocks, total_blocks=total) == share


@pytest.mark.parametrize(
    ("asked", "limits"),
    [
        ({}, (0, 0)),
        ({"cpu": 2, "memory": "1GB"}, (2, 2**30)),
        ({"cpu": "2..", "memory": "1GB.."}, (0, 0)),
        ({"cpu": "2..64", "memory": "1GB..2GB"}, (8, 2 * 2**30)),
    ],
)
def test_on_this_machine_the_upper_ends_limit(asked: dict[str, Any], limits: tuple[float, int]) -> None:
    assert upper_ends(context(resources=asked).spec, MACHINE) == limits


@pytest.mark.parametrize(("seconds", "grace"), [(None, 10.0), (45, 45), (0, 0)])
def test_how_long_it_may_take_to_stop(seconds: float | None, grace: float) -> None:
    assert make_task(replace(context(), stop_seconds=seconds), HERE, IMAGES).stop_grace_seconds == grace


@pytest.mark.parametrize(
    ("host", "asked", "image"),
    [
        (HERE, {}, None),
        (HERE, {"nvcc": True}, None),
        (HERE, {"docker": True}, "reg.example/dind:7"),
        (HERE, {"image": "dstackai/base:0.16-base-ubuntu24.04"}, "dstackai/base:0.16-base-ubuntu24.04"),
        (WHOLE, {}, "reg.example/base:7-base-ubuntu26.04"),
        (replace(WHOLE, is_without_docker=True), {}, None),
    ],
)
def test_a_job_that_asks_for_no_image_may_be_a_process(
    host: Host, asked: dict[str, Any], image: str | None
) -> None:
    made = task(host, **asked)
    assert (made.image, made.executor) == (image, "container" if image else "process")


def test_only_processes_are_equipped_by_the_host() -> None:
    asked = replace(context(), python="3.12")
    assert make_task(asked, HERE, IMAGES).python == "3.12"
    assert make_task(asked, WHOLE, IMAGES).python is None
    assert (task(nvcc=True).nvcc, task(WHOLE, nvcc=True).nvcc) == (True, False)


def test_shared_memory_and_mounts() -> None:
    volumes = ["/data:/mnt", {"instance_path": "/o", "path": "/p", "optional": True}]
    made = task(WHOLE, image="i", resources={"shm_size": "2GB"}, volumes=volumes)
    assert made.shm_size_bytes == 2 * 2**30
    assert made.mounts == [
        {"host_path": "/data", "path": "/mnt", "optional": False},
        {"host_path": "/o", "path": "/p", "optional": True},
    ]


def test_each_job_has_a_loopback_address_of_its_own() -> None:
    addresses = {own_address(uuid.uuid4()) for _ in range(100)}
    assert len(addresses) == 100
    for address in [*addresses, own_address(uuid.UUID(int=0)), own_address(uuid.UUID(int=254**3 - 1))]:
        first, *rest = (int(part) for part in address.split("."))
        assert first == 127
        assert all(1 <= part <= 254 for part in rest)
        assert address != "127.0.0.1"

"""What satisfies a job: whole machines and blocks of them, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from dstack.core.backends import BackendType
from dstack.core.instances import Disk, Gpu, InstanceOffer, InstanceType, Requirements, Resources
from dstack.core.resources import AcceleratorVendor, ResourcesSpec
from dstack.server.planning import matching

NVIDIA = AcceleratorVendor.NVIDIA


def machine(cpus: int = 8, memory_gb: int = 32, gpus: int = 0, gpu: str = "A100", **more: Any) -> Resources:
    cards = [Gpu(name=gpu, memory_mib=80 * 1024) for _ in range(gpus)]
    disk = Disk(size_mib=200 * 1024)
    return Resources(cpus=cpus, memory_mib=memory_gb * 1024, gpus=cards, spot=False, disk=disk, **more)


def wanted(**resources: Any) -> Requirements:
    return Requirements(resources=ResourcesSpec.model_validate(resources))


@pytest.mark.parametrize(
    ("resources", "has", "reason"),
    [
        ({}, machine(), None),
        ({"cpu": "16.."}, machine(), "has 8 CPUs, needed are 16.."),
        ({"cpu": "..4"}, machine(), "has 8 CPUs, needed are ..4"),
        ({"cpu": "arm:4.."}, machine(cpu_arch="x86"), "has x86 CPUs, not arm"),
        ({"cpu": "arm:4.."}, machine(cpu_arch="arm"), None),
        ({"memory": "64GB.."}, machine(), "has 32 GB of memory, needed are 64GB.."),
        ({"disk": "1TB.."}, machine(), "has 200 GB of disk, needed are 1TB.."),
        ({"gpu": 1}, machine(), "has 0 GPUs, needed are 1"),
        ({"gpu": 0}, machine(gpus=1), "has 1 GPUs, needed are 0"),
        ({"gpu": "0.."}, machine(gpus=1), None),
        ({"gpu": "A100:2"}, machine(gpus=2), None),
        ({"gpu": "a100:2"}, machine(gpus=2), None),
        ({"gpu": "H100,H200:2"}, machine(gpus=2), "has A100, needed are H100 or H200"),
        ({"gpu": "24GB..40GB:2"}, machine(gpus=2), "has GPUs with 80 GB, needed are 24GB..40GB"),
        ({"gpu": {"count": 2, "total_memory": "200GB.."}}, machine(gpus=2), "has 160 GB of GPU memory in all"),
    ],
)
def test_resources_mismatch(resources: dict[str, Any], has: Resources, reason: str | None) -> None:
    found = matching.resources_mismatch(wanted(**resources).resources, has)
    assert (
        (found is None) if reason is None else (found is not None and found.startswith(reason.split(" needed")[0]))
    )


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        ({"max_price": 0.5}, "costs $1, over the maximum of $0.5"),
        ({"max_price": 1.0}, None),
        ({"spot": True}, "is not a spot instance"),
        ({"spot": False}, None),
        ({"spot": None}, None),
    ],
)
def test_whole_mismatch(requirements: dict[str, Any], reason: str | None) -> None:
    offer = InstanceOffer.model_validate(
        {"backend": "remote", "instance": InstanceType(name="m", resources=machine()), "region": "r", "price": 1.0}
    )
    assert matching.whole_mismatch(wanted().model_copy(update=requirements), offer) == reason


@pytest.mark.parametrize(
    ("resources", "has", "free", "total", "blocks"),
    [
        ({"cpu": 2, "memory": "8GB"}, machine(), 4, 4, 1),
        ({"cpu": "4..", "memory": "0GB.."}, machine(), 4, 4, 2),
        ({"cpu": "4..", "memory": "0GB.."}, machine(), 1, 4, None),
        ({"gpu": "A100:1", "memory": "0GB..", "cpu": "1.."}, machine(gpus=4), 4, 4, 1),
        ({"gpu": "A100:3", "memory": "0GB..", "cpu": "1.."}, machine(gpus=4), 4, 4, 3),
        ({"cpu": "64..", "memory": "0GB.."}, machine(), 4, 4, None),
    ],
)
def test_the_smallest_share_that_satisfies(
    resources: dict[str, Any], has: Resources, free: int, total: int, blocks: int | None
) -> None:
    share = matching.smallest_share(wanted(**resources), has, free_blocks=free, total_blocks=total)
    assert (share.blocks if share else None) == blocks


@pytest.mark.parametrize(("free", "blocks"), [(4, 4), (3, None)])
def test_a_node_of_several_takes_a_whole_idle_instance(free: int, blocks: int | None) -> None:
    requirements = wanted().model_copy(update={"multinode": True})
    share = matching.smallest_share(requirements, machine(), free_blocks=free, total_blocks=4)
    assert (share.blocks if share else None) == blocks


def test_defaults_of_the_format_do_not_keep_a_job_off_a_small_machine() -> None:
    small = Resources(cpus=1, memory_mib=2048, gpus=[], spot=False, disk=Disk(size_mib=10240))
    assert matching.resources_mismatch(wanted().resources, small) is not None
    assert matching.resources_mismatch(matching.without_defaults(wanted()).resources, small) is None
    asked = matching.without_defaults(wanted(memory="4GB.."))
    assert matching.resources_mismatch(asked.resources, small) is not None


@pytest.mark.parametrize(
    ("blocks", "has", "count"),
    [
        ("auto", machine(), 8),
        ("auto", machine(gpus=4), 4),
        (2, machine(), 2),
        ("auto", machine(cpus=2, gpus=4), 2),
    ],
)
def test_block_count(blocks: int | str, has: Resources, count: int) -> None:
    assert matching.block_count(blocks, has) == count


def own_machine(*gpus: str) -> InstanceOffer:
    cards = [Gpu(name=name, memory_mib=24576, vendor=NVIDIA) for name in gpus]
    resources = Resources(cpus=4, memory_mib=16384, gpus=cards, spot=False, disk=Disk(size_mib=512_000))
    kind = InstanceType(name="local", resources=resources)
    return InstanceOffer(backend=BackendType.REMOTE, instance=kind, region="local", price=0.0)


@pytest.mark.parametrize(
    ("asked", "free", "gpus"),
    [
        ({}, 2, 0),
        ({"gpu": 1}, 2, 1),
        ({"gpu": "1.."}, 2, 1),
        ({"gpu": 2}, 2, 2),
        ({"gpu": 2}, 1, None),
        ({"gpu": 3}, 2, None),
        ({"gpu": "0.."}, 0, 0),
        ({"gpu": "RTX4090:1"}, 2, 1),
        ({"gpu": "H100:1"}, 2, None),
        ({"gpu": {"count": "1..", "total_memory": "48GB"}}, 2, 2),
        ({"gpu": {"count": 1, "compute_capability": "8.9"}}, 2, 1),
        ({"gpu": {"count": 1, "compute_capability": "9.0"}}, 2, None),
        ({"gpu": {"count": 1, "memory": "40GB.."}}, 2, None),
        ({"cpu": 8}, 2, None),
        ({"cpu": 2, "memory": "1GB", "disk": "1GB"}, 2, 0),
    ],
)
def test_a_job_takes_as_few_gpus_of_this_machine_as_it_needs(
    asked: dict[str, Any], free: int, gpus: int | None
) -> None:
    offer = own_machine("GeForce RTX 4090", "GeForce RTX 4090")
    share = matching.slot_of(wanted(**asked), offer, free_gpus=free)
    assert (None if share is None else len(share.resources.gpus)) == gpus


def test_why_this_machine_does_not_do() -> None:
    offer = own_machine("L4")
    for asked, why in (
        ({"gpu": 2}, "has 1 GPUs"),
        ({"gpu": "H100"}, "has L4, needed are H100"),
        ({"gpu": 1}, None),
    ):
        told = matching.slot_mismatch(wanted(**asked), offer)
        assert (told is None) == (why is None)
        assert why is None or why in (told or "")

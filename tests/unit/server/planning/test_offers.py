"""Which offers do, in which order, and what of them is shown."""

from __future__ import annotations

import uuid
from typing import Any

from dstack.core.backends import BackendType
from dstack.core.instances import (
    Disk,
    Gpu,
    InstanceAvailability,
    InstanceOfferWithAvailability,
    InstanceStatus,
    InstanceType,
    Requirements,
    Resources,
)
from dstack.core.resources import ResourcesSpec
from dstack.server.planning.offers import (
    BackendOffer,
    ExistingInstance,
    Limits,
    View,
    creatable,
    distinct,
    reusable,
)

IDLE, BUSY = InstanceAvailability.IDLE, InstanceAvailability.BUSY


def offer(name: str = "small", **fields: Any) -> InstanceOfferWithAvailability:
    resources = Resources(
        cpus=fields.pop("cpus", 8),
        memory_mib=65536,
        gpus=[Gpu(name="H100", memory_mib=81920)] * fields.pop("gpus", 0),
        spot=fields.pop("spot", False),
        disk=Disk(size_mib=500 * 1024),
    )
    values: dict[str, Any] = {
        "backend": BackendType.AWS,
        "region": "eu",
        "price": 1.0,
        "availability": InstanceAvailability.AVAILABLE,
    }
    return InstanceOfferWithAvailability(instance=InstanceType(name=name, resources=resources), **values | fields)


def requirements(**resources: Any) -> Requirements:
    spec = ResourcesSpec.model_validate(resources)
    return Requirements(resources=spec, spot=False, multinode=False)


def names(offers: list[BackendOffer]) -> list[str]:
    return [found.offer.instance.name for found in offers]


def instance(free: int = 1, total: int = 1, **fields: Any) -> ExistingInstance:
    status = InstanceStatus.BUSY if free == 0 else InstanceStatus.IDLE
    values: dict[str, Any] = {"backend": "aws", "status": status, "offer": offer()}
    return ExistingInstance(uuid.uuid4(), total_blocks=total, busy_blocks=total - free, **values | fields)


def test_what_satisfies_is_offered_cheapest_first() -> None:
    offers = [
        offer("dear", price=3.0),
        offer("cheap", price=0.5),
        offer("tiny", cpus=1),
        offer("taken", availability=InstanceAvailability.NO_QUOTA),
        offer("spot", spot=True),
    ]
    found = creatable([BackendOffer("aws", each) for each in offers], requirements(), Limits())
    assert names(found) == ["cheap", "dear"]


def test_limits_leave_out_the_rest() -> None:
    here = offer("here", availability_zones=["eu-a", "eu-b"])
    offers = [
        here,
        offer("elsewhere", region="us", availability_zones=["eu-a"]),
        offer("other", backend=BackendType.GCP, availability_zones=["eu-a"]),
        offer("unnamed", availability_zones=["eu-a"]),
        offer("there", availability_zones=["eu-c"]),
        offer("nowhere"),
    ]
    limits = Limits(
        backends=frozenset({"aws"}),
        regions=frozenset({"eu"}),
        availability_zones=frozenset({"eu-a"}),
        instance_types=frozenset({"here", "elsewhere", "other", "there", "nowhere"}),
    )
    found = creatable([BackendOffer("aws", each) for each in offers], requirements(), limits)
    assert names(found) == ["here"]
    assert found[0].offer.availability_zones == ["eu-a"]


def test_the_own_machine_need_not_have_the_defaults() -> None:
    small = offer("local", cpus=1, backend=BackendType.REMOTE)
    assert names(creatable([BackendOffer("local", small)], requirements(), Limits())) == ["local"]
    assert creatable([BackendOffer("fake", small)], requirements(), Limits()) == []
    assert creatable([BackendOffer("local", small)], requirements(cpu="4.."), Limits()) == []


def test_a_fleet_with_blocks_offers_the_smallest_part_that_does() -> None:
    machine = [BackendOffer("aws", offer("big", cpus=8, gpus=4))]
    part = creatable(machine, requirements(gpu=1), Limits(), blocks=4, view=View())
    assert (part[0].offer.blocks, part[0].offer.total_blocks) == (1, 4)
    assert (part[0].offer.instance.resources.cpus, len(part[0].offer.instance.resources.gpus)) == (2, 1)
    whole = creatable(machine, requirements(gpu=1), Limits(), blocks="auto", view=View(full=True))
    assert (whole[0].offer.total_blocks, len(whole[0].offer.instance.resources.gpus)) == (4, 4)
    assert creatable(machine, requirements(gpu=1), Limits(), blocks=3) == []


def test_idle_instances_come_before_busy_ones_and_lost_ones_are_busy() -> None:
    instances = [
        instance(free=0, offer=offer("busy", price=0.1)),
        instance(offer=offer("dear", price=2.0)),
        instance(offer=offer("cheap", price=0.2)),
        instance(offer=offer("lost", price=0.3), unreachable=True),
        instance(offer=offer("starting"), status=InstanceStatus.PROVISIONING),
        instance(offer=offer("tiny", cpus=1)),
    ]
    found = reusable(instances, requirements(), Limits())
    assert [(each.offer.instance.name, each.offer.availability) for each in found] == [
        ("cheap", IDLE),
        ("dear", IDLE),
        ("busy", BUSY),
        ("lost", BUSY),
    ]


def test_a_shared_instance_is_idle_while_it_has_enough_free_blocks() -> None:
    shared = instance(free=2, total=4, status=InstanceStatus.BUSY)
    small = reusable([shared], requirements(cpu="4"), Limits())[0].offer
    assert (small.availability, small.blocks, small.instance.resources.cpus) == (IDLE, 2, 4)
    large = reusable([shared], requirements(cpu="5.."), Limits())[0].offer
    assert (large.availability, large.blocks, large.total_blocks) == (BUSY, 3, 4)
    full = reusable([shared], requirements(), Limits(), view=View(full=True))[0].offer
    assert full.instance.resources.cpus == 8
    rest = reusable([shared], requirements(), Limits(), view=View(full=True, unallocated=True))[0].offer
    assert rest.instance.resources.cpus == 4


def test_what_several_fleets_offer_is_offered_once() -> None:
    offers = [BackendOffer("aws", offer()), BackendOffer("aws", offer()), BackendOffer("fake", offer())]
    assert [found.backend for found in distinct(offers)] == ["aws", "fake"]


def test_jobs_on_the_own_machine_share_it_as_a_whole() -> None:
    machine = instance(free=1, total=7, backend="local", offer=offer("local", cpus=2))
    found = reusable([machine], requirements(cpu="2.."), Limits())[0].offer
    assert (found.availability, found.blocks, found.total_blocks) == (IDLE, 1, 7)
    assert found.instance.resources.cpus == 2
    full = instance(free=0, total=7, backend="local", offer=offer("local", cpus=2))
    assert reusable([full], requirements(), Limits())[0].offer.availability is BUSY

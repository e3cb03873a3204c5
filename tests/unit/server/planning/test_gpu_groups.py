"""Offers summed up by GPU."""

from __future__ import annotations

from typing import Any

from dstack.core.backends import BackendType
from dstack.core.instances import (
    Gpu,
    InstanceAvailability,
    InstanceOfferWithAvailability,
    InstanceType,
    Resources,
)
from dstack.server.planning.gpu_groups import cpu_groups, gpu_groups


def offer(gpu: str | None, count: int, price: float, **fields: Any) -> InstanceOfferWithAvailability:
    gpus = [Gpu(name=gpu, memory_mib=81920)] * count if gpu else []
    resources = Resources(cpus=8, memory_mib=65536, gpus=gpus, spot=fields.pop("spot", False))
    values: dict[str, Any] = {
        "backend": BackendType.AWS,
        "region": "eu",
        "availability": InstanceAvailability.AVAILABLE,
    }
    instance = InstanceType(name=f"{gpu}-{count}", resources=resources)
    return InstanceOfferWithAvailability(instance=instance, price=price, **values | fields)


OFFERS = [
    offer("H100", 8, 24.0),
    offer("H100", 1, 4.0, region="us", backend=BackendType.GCP, spot=True),
    offer("A100", 1, 2.0),
    offer("L4", 1, 0.5, availability=InstanceAvailability.BUSY),
    offer(None, 0, 0.1),
]


def test_groups_are_cheapest_first_and_those_that_can_be_had_before_the_rest() -> None:
    groups = gpu_groups(OFFERS, [])
    assert [group.name for group in groups] == ["A100", "H100", "L4"]
    h100 = groups[1]
    assert (h100.count.min, h100.count.max) == (1, 8)
    assert (h100.price.min, h100.price.max) == (3.0, 4.0)
    assert h100.spot == ["spot", "on-demand"]
    assert h100.backends == [BackendType.AWS, BackendType.GCP]
    assert h100.regions == ["eu", "us"]
    assert h100.backend is None


def test_grouping_splits() -> None:
    by_place = [group for group in gpu_groups(OFFERS, ["backend", "region"]) if group.name == "H100"]
    assert [(group.backend, group.region) for group in by_place] == [
        (BackendType.AWS, "eu"),
        (BackendType.GCP, "us"),
    ]
    assert by_place[0].backends is None
    by_count = [group for group in gpu_groups(OFFERS, ["count"]) if group.name == "H100"]
    assert sorted(group.count.max or 0 for group in by_count) == [1, 8]


def test_machines_without_gpus_are_summed_up_apart() -> None:
    (group,) = cpu_groups(OFFERS, [])
    assert (group.count.min, group.price.max, group.regions) == (8, 0.1, ["eu"])

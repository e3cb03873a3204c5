"""Offers summed up by GPU, as `dstack offer --group-by gpu` and the UI show them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dstack.core.instances import Gpu, InstanceAvailability, InstanceOfferWithAvailability
from dstack.core.resources import AcceleratorVendor, CPUArchitecture, Range
from dstack.core.schemas.gpus import CpuGroup, GpuGroup

Offers = Sequence[InstanceOfferWithAvailability]


def gpu_groups(offers: Iterable[InstanceOfferWithAvailability], group_by: Sequence[str]) -> list[GpuGroup]:
    """One group for each GPU and each value of `backend`, `region`, `count` that is grouped by; cheapest first."""
    groups: dict[tuple[Any, ...], list[InstanceOfferWithAvailability]] = {}
    for offer in offers:
        gpus = offer.instance.resources.gpus
        if gpus:
            key = (gpus[0].name, gpus[0].memory_mib, _vendor(gpus[0]), *_place(offer, group_by))
            groups.setdefault((*key, len(gpus) if "count" in group_by else None), []).append(offer)
    return sorted((_gpu_group(found, group_by) for found in groups.values()), key=_gpu_rank)


def cpu_groups(offers: Iterable[InstanceOfferWithAvailability], group_by: Sequence[str]) -> list[CpuGroup]:
    """The same for offers without a GPU."""
    groups: dict[tuple[Any, ...], list[InstanceOfferWithAvailability]] = {}
    for offer in offers:
        resources = offer.instance.resources
        if not resources.gpus:
            count = resources.cpus if "count" in group_by else None
            groups.setdefault((*_place(offer, group_by), count), []).append(offer)
    return sorted((_cpu_group(found, group_by) for found in groups.values()), key=_cpu_rank)


def _place(offer: InstanceOfferWithAvailability, group_by: Sequence[str]) -> tuple[Any, ...]:
    backend = offer.backend if "backend" in group_by else None
    return backend, offer.region if "region" in group_by else None


def _gpu_group(offers: Offers, group_by: Sequence[str]) -> GpuGroup:
    gpu = offers[0].instance.resources.gpus[0]
    counts = [len(offer.instance.resources.gpus) for offer in offers]
    return GpuGroup(
        name=gpu.name,
        memory_mib=gpu.memory_mib,
        vendor=_vendor(gpu),
        count=_ints(counts),
        price=_floats([offer.price / count for offer, count in zip(offers, counts, strict=True)]),
        offer_price=_floats([offer.price for offer in offers]),
        **_shared(offers, group_by),
    )


def _cpu_group(offers: Offers, group_by: Sequence[str]) -> CpuGroup:
    resources = [offer.instance.resources for offer in offers]
    return CpuGroup(
        cpu_arch=sorted({one.cpu_arch or CPUArchitecture.X86 for one in resources}, key=lambda arch: arch.value),
        count=_ints([one.cpus for one in resources]),
        memory_mib=_ints([one.memory_mib for one in resources]),
        price=_floats([offer.price for offer in offers]),
        **_shared(offers, group_by),
    )


def _shared(offers: Offers, group_by: Sequence[str]) -> dict[str, Any]:
    """`backend` and `region` where they are grouped by, else all of them."""
    backends = sorted({offer.backend for offer in offers}, key=lambda backend: backend.value)
    regions = sorted({offer.region for offer in offers})
    spots = {offer.instance.resources.spot for offer in offers}
    place: dict[str, Any] = {"backend": backends[0]} if "backend" in group_by else {"backends": backends}
    place.update({"region": regions[0]} if "region" in group_by else {"regions": regions})
    return {
        "availability": list(dict.fromkeys(offer.availability for offer in offers)),
        "spot": [word for word, spot in (("spot", True), ("on-demand", False)) if spot in spots],
        **place,
    }


def _vendor(gpu: Gpu) -> AcceleratorVendor:
    """A GPU that does not say whose it is, is NVIDIA's."""
    return gpu.vendor or AcceleratorVendor.NVIDIA


def _ints(values: list[int]) -> Range[int]:
    return Range[int](min=min(values), max=max(values))


def _floats(values: list[float]) -> Range[float]:
    return Range[float](min=round(min(values), 4), max=round(max(values), 4))


def _is_out(availability: Iterable[InstanceAvailability]) -> bool:
    return not any(one.is_available() for one in availability)


def _gpu_rank(group: GpuGroup) -> tuple[bool, float, float, str, int]:
    return _is_out(group.availability), group.price.min or 0, group.price.max or 0, group.name, group.memory_mib


def _cpu_rank(group: CpuGroup) -> tuple[bool, float, float, int]:
    return _is_out(group.availability), group.price.min or 0, group.price.max or 0, group.count.min or 0

"""Does a machine, or a part of one, have what a job needs? Pure.

Sizes: `ResourcesSpec` speaks of gigabytes (base 1024), `Resources` of mebibytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dstack.core.gpu_names import compute_capability, is_called
from dstack.core.instances import Gpu, InstanceOffer, Requirements, Resources
from dstack.core.resources import CPUSpec, DiskSpec, GPUSpec, Range, ResourcesSpec

DEFAULTS = ResourcesSpec()


def whole_mismatch(requirements: Requirements, offer: InstanceOffer) -> str | None:
    """Why this offer does not do, in words; None when it does."""
    if requirements.max_price is not None and offer.price > requirements.max_price:
        return f"costs ${offer.price:g}, over the maximum of ${requirements.max_price:g}"
    resources = offer.instance.resources
    if requirements.spot is not None and requirements.spot != resources.spot:
        return "is a spot instance" if resources.spot else "is not a spot instance"
    return resources_mismatch(requirements.resources, resources)


def resources_mismatch(spec: ResourcesSpec, resources: Resources) -> str | None:
    """The first thing that is missing, in words; None when nothing is."""
    arch = resources.cpu_arch
    if spec.cpu.arch is not None and arch is not None and spec.cpu.arch != arch:
        return f"has {arch.value} CPUs, not {spec.cpu.arch.value}"
    checks: list[tuple[str, Range[int] | Range[float] | None, float]] = [
        ("CPUs", spec.cpu.count, resources.cpus),
        ("GB of memory", spec.memory, resources.memory_mib / 1024),
        ("GB of disk", spec.disk.size if spec.disk else None, resources.disk.size_mib / 1024),
    ]
    for what, wanted, has in checks:
        if wanted is not None and not _within(wanted, has):
            return f"has {has:g} {what}, needed are {wanted}"
    return _gpu_mismatch(spec.gpu, resources.gpus)


def _within(wanted: Range[int] | Range[float], has: float) -> bool:
    below = wanted.min is not None and has < wanted.min
    above = wanted.max is not None and has > wanted.max
    return not below and not above


def _gpu_mismatch(spec: GPUSpec | None, gpus: list[Gpu]) -> str | None:
    if spec is None:
        return None
    if not _within(spec.count, len(gpus)):
        return f"has {len(gpus)} GPUs, needed are {spec.count}"
    for gpu in gpus if spec.count.max != 0 else []:
        if (reason := _one_gpu_mismatch(spec, gpu)) is not None:
            return reason
    total = sum(gpu.memory_mib for gpu in gpus) / 1024
    if gpus and spec.total_memory is not None and not _within(spec.total_memory, total):
        return f"has {total:g} GB of GPU memory in all, needed are {spec.total_memory}"
    return None


def _one_gpu_mismatch(spec: GPUSpec, gpu: Gpu) -> str | None:
    wants_any = spec.count.min in (None, 0) and (spec.name, spec.memory, spec.compute_capability) == (None,) * 3
    if wants_any:
        return None
    if spec.vendor is not None and gpu.vendor is not None and spec.vendor != gpu.vendor:
        return f"has GPUs of {gpu.vendor.value}, not of {spec.vendor.value}"
    if spec.name is not None and not any(is_called(gpu.name, name) for name in spec.name):
        return f"has {gpu.name}, needed are {' or '.join(spec.name)}"
    if spec.memory is not None and not _within(spec.memory, gpu.memory_mib / 1024):
        return f"has GPUs with {gpu.memory_mib / 1024:g} GB, needed are {spec.memory}"
    return _capability_mismatch(spec, gpu)


def _capability_mismatch(spec: GPUSpec, gpu: Gpu) -> str | None:
    needed, has = spec.compute_capability, compute_capability(gpu.name)
    if needed is None or (has is not None and has >= needed):
        return None
    shown = "an unknown compute capability" if has is None else f"compute capability {has[0]}.{has[1]}"
    return f"has {gpu.name} with {shown}, needed is {needed[0]}.{needed[1]}"


def without_defaults(requirements: Requirements) -> Requirements:
    """The same without the minima that the configuration format fills in by itself (2 CPUs, 8 GB, 100 GB).

    For the machine in front of the user (ADR 0005): whoever did not ask for anything gets what is there.
    """
    spec = requirements.resources.model_copy(deep=True)
    if spec.cpu.count == DEFAULTS.cpu.count:
        spec.cpu = CPUSpec(arch=spec.cpu.arch, count=Range[int](min=0))
    if spec.memory == DEFAULTS.memory:
        spec.memory = Range[float](min=0.0)
    if spec.disk is not None and spec.disk == DEFAULTS.disk:
        spec.disk = DiskSpec(size=Range[float](min=0.0))
    return requirements.model_copy(update={"resources": spec})


@dataclass(frozen=True)
class Share:
    """A part of an instance: so many of its equal blocks, and what is in them."""

    blocks: int
    resources: Resources


def share_of(resources: Resources, blocks: int, total_blocks: int) -> Share:
    """What `blocks` of `total_blocks` equal parts have; the disk is shared by all."""
    if blocks >= total_blocks:
        return Share(blocks, resources)
    gpus = resources.gpus[: len(resources.gpus) * blocks // total_blocks]
    part = resources.model_copy(
        update={
            "cpus": resources.cpus * blocks // total_blocks,
            "memory_mib": resources.memory_mib * blocks // total_blocks,
            "gpus": gpus,
        }
    )
    return Share(blocks, part)


def smallest_share(
    requirements: Requirements, resources: Resources, *, free_blocks: int, total_blocks: int
) -> Share | None:
    """The smallest number of free blocks that satisfies; multi-node jobs take a whole idle instance or nothing."""
    if requirements.multinode:
        whole = free_blocks == total_blocks and resources_mismatch(requirements.resources, resources) is None
        return Share(total_blocks, resources) if whole else None
    first = max(1, ceil(total_blocks * (requirements.resources.cpu.count.min or 0) / max(resources.cpus, 1)))
    for blocks in range(first, free_blocks + 1):
        share = share_of(resources, blocks, total_blocks)
        if resources_mismatch(requirements.resources, share.resources) is None:
            return share
    return None


def slot_of(requirements: Requirements, offer: InstanceOffer, *, free_gpus: int) -> Share | None:
    """What a job gets of the server's own machine: one slot, and of the GPUs as few as it needs (ADR 0005)."""
    needed = _at_least(requirements)
    resources = offer.instance.resources
    least = 0 if needed.resources.gpu is None else needed.resources.gpu.count.min or 0
    for count in range(least, min(free_gpus, len(resources.gpus)) + 1):
        part = resources.model_copy(update={"gpus": resources.gpus[:count]})
        as_part = offer.model_copy(update={"instance": offer.instance.model_copy(update={"resources": part})})
        if whole_mismatch(needed, as_part) is None:
            return Share(1, part)
    return None


def slot_mismatch(requirements: Requirements, offer: InstanceOffer) -> str | None:
    """Why not even the idle machine of the server does; None when it does."""
    gpus = len(offer.instance.resources.gpus)
    if slot_of(requirements, offer, free_gpus=gpus) is not None:
        return None
    return whole_mismatch(_at_least(requirements), offer) or "does not have what is needed"


def _at_least(requirements: Requirements) -> Requirements:
    """The same without defaults and upper ends: a job gets a part of the machine, however large that is."""
    needed = without_defaults(requirements)
    spec = needed.resources
    spec.cpu = CPUSpec(arch=spec.cpu.arch, count=Range[int](min=spec.cpu.count.min or 0))
    spec.memory = Range[float](min=spec.memory.min or 0.0)
    if spec.disk is not None:
        spec.disk = DiskSpec(size=Range[float](min=spec.disk.size.min or 0.0))
    return needed


def block_count(blocks: int | str, resources: Resources) -> int:
    """Into how many parts an instance is split; `auto`: as many as its GPUs and CPUs allow."""
    if blocks != "auto":
        return int(blocks)
    return min(resources.cpus, len(resources.gpus)) if resources.gpus else max(resources.cpus, 1)


def share_of_offer(
    requirements: Requirements, offer: InstanceOffer, *, free_blocks: int, total_blocks: int
) -> Share | None:
    """The smallest free part of the instance that satisfies, its price included; None when there is none.

    What is asked for is compared with the part: four CPUs are a quarter of sixteen, not too many of them.
    """
    share = smallest_share(
        requirements, offer.instance.resources, free_blocks=free_blocks, total_blocks=total_blocks
    )
    if share is None:
        return None
    price = offer.price * share.blocks / total_blocks
    as_part = offer.model_copy(
        update={"price": price, "instance": offer.instance.model_copy(update={"resources": share.resources})}
    )
    return share if whole_mismatch(requirements, as_part) is None else None

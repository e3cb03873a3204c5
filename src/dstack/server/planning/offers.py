"""Which offers will do, in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from uuid import UUID

from dstack.core.backends import LOCAL, BackendType
from dstack.core.instances import (
    InstanceAvailability,
    InstanceOfferWithAvailability,
    InstanceStatus,
    Requirements,
    Resources,
)
from dstack.server.planning.matching import (
    Share,
    block_count,
    share_of,
    share_of_offer,
    slot_mismatch,
    slot_of,
    smallest_share,
    whole_mismatch,
)


@dataclass(frozen=True)
class Limits:
    """Where offers may come from; None leaves a field open. Backends are those of the REST API."""

    backends: frozenset[str] | None = None
    regions: frozenset[str] | None = None
    """Lower-case, as are the following."""
    availability_zones: frozenset[str] | None = None
    instance_types: frozenset[str] | None = None

    def mismatch(self, offer: InstanceOfferWithAvailability) -> str | None:
        """Why this offer is out of bounds, in words; None when it is not."""
        if self.backends is not None and offer.backend.value not in self.backends:
            return f"is of backend {offer.backend.value}"
        if self.regions is not None and offer.region.lower() not in self.regions:
            return f"is in region {offer.region}"
        if self.instance_types is not None and offer.instance.name.lower() not in self.instance_types:
            return f"is of instance type {offer.instance.name}"
        if self.availability_zones is not None and not self.zones_of(offer):
            return "is in none of the availability zones"
        return None

    def zones_of(self, offer: InstanceOfferWithAvailability) -> list[str] | None:
        """The offer's zones that are within the limits; None when it has none to choose from."""
        if self.availability_zones is None or offer.availability_zones is None:
            return offer.availability_zones
        return [zone for zone in offer.availability_zones if zone.lower() in self.availability_zones]


@dataclass(frozen=True)
class BackendOffer:
    """What a backend could create. `backend`: its own type (`local`, …), which the wire does not tell."""

    backend: str
    offer: InstanceOfferWithAvailability


@dataclass(frozen=True)
class ExistingInstance:
    """An instance of a fleet that is up, with what it was created from."""

    id: UUID
    backend: str
    status: InstanceStatus
    offer: InstanceOfferWithAvailability
    total_blocks: int
    busy_blocks: int
    unreachable: bool = False
    busy_gpus: int = 0
    """Of the server's own machine, which is not divided into equal parts."""

    @property
    def free_blocks(self) -> int:
        return 0 if self.unreachable else max(0, self.total_blocks - self.busy_blocks)


@dataclass(frozen=True)
class ReusableOffer:
    """An existing instance, as a whole or in part. Its availability is `idle` when it can be taken now."""

    instance_id: UUID
    backend: str
    offer: InstanceOfferWithAvailability


@dataclass(frozen=True)
class View:
    """How much of an instance an offer shows. By default the part that the job would get.

    `full`: the whole instance; `unallocated`: of it, what no other job holds.
    """

    full: bool = False
    unallocated: bool = False


PART = View()
WHOLE = View(full=True)


def creatable(
    offers: Iterable[BackendOffer],
    requirements: Requirements,
    limits: Limits,
    *,
    blocks: int | str = 1,
    view: View = WHOLE,
) -> list[BackendOffer]:
    """Those that satisfy, cheapest first. `blocks`: into how many parts the fleet splits its instances."""
    found: list[BackendOffer] = []
    for candidate in offers:
        offer = _creatable(candidate, requirements, limits, blocks, view)
        if offer is not None:
            found.append(replace(candidate, offer=offer))
    return sorted(found, key=lambda found: _rank(found.offer))


def _creatable(
    candidate: BackendOffer, requirements: Requirements, limits: Limits, blocks: int | str, view: View
) -> InstanceOfferWithAvailability | None:
    offer = candidate.offer
    if not offer.availability.is_available() or limits.mismatch(offer) is not None:
        return None
    if candidate.backend == LOCAL:
        share, total = slot_of(requirements, offer, free_gpus=len(offer.instance.resources.gpus)), 1
    else:
        total = block_count(blocks, offer.instance.resources)
        share = _share(requirements, offer, total, total)
    if share is None:
        return None
    zones = {"availability_zones": limits.zones_of(offer)}
    return _shown(offer, share, total, view, free_blocks=total).model_copy(update=zones)


@lru_cache(maxsize=4096)
def stored_offer(text: str) -> InstanceOfferWithAvailability:
    """The offer as an instance's row holds it, read once: many hosts have the same. Not to be changed."""
    return InstanceOfferWithAvailability.model_validate_json(text, extra="ignore")


def offer_mismatch(
    backend: str,
    offer: InstanceOfferWithAvailability,
    needed: Requirements,
    limits: Limits,
    *,
    blocks: int | str,
) -> str | None:
    """Why an instance like this is not what is asked for, in words; None when it is."""
    if needed.reservation is not None and offer.backend is BackendType.REMOTE:
        return f"is in no reservation {needed.reservation}: nobody can reserve it"
    why = limits.mismatch(offer)
    if why is not None:
        return why
    if backend == LOCAL:
        return slot_mismatch(needed, offer)
    total = block_count(blocks, offer.instance.resources)
    if share_of_offer(needed, offer, free_blocks=total, total_blocks=total) is not None:
        return None
    return whole_mismatch(needed, offer) or "has no part that does"


def reusable(
    instances: Iterable[ExistingInstance], requirements: Requirements, limits: Limits, *, view: View = PART
) -> list[ReusableOffer]:
    """Those that satisfy, now or once they are free: idle ones first, then by price."""
    found: list[ReusableOffer] = []
    for instance in instances:
        offer = _reusable(instance, requirements, limits, view)
        if offer is not None:
            found.append(ReusableOffer(instance.id, instance.backend, offer))
    return sorted(found, key=lambda found: _rank(found.offer))


def _reusable(
    instance: ExistingInstance, requirements: Requirements, limits: Limits, view: View
) -> InstanceOfferWithAvailability | None:
    offer = instance.offer
    if not instance.status.is_available() or limits.mismatch(offer) is not None:
        return None
    total = instance.total_blocks
    if instance.backend == LOCAL:
        gpus = len(offer.instance.resources.gpus)
        share = slot_of(requirements, offer, free_gpus=gpus)
        free = slot_of(requirements, offer, free_gpus=gpus - instance.busy_gpus)
        free_share = free if instance.free_blocks else None
    else:
        free_share = _share(requirements, offer, instance.free_blocks, total)
        share = free_share or _share(requirements, offer, total, total)
    if share is None:
        return None
    availability = InstanceAvailability.IDLE if free_share else InstanceAvailability.BUSY
    shown = _shown(offer, share, total, view, free_blocks=instance.free_blocks)
    return shown.model_copy(update={"availability": availability})


def _share(
    requirements: Requirements, offer: InstanceOfferWithAvailability, free: int, total: int
) -> Share | None:
    """The smallest part that satisfies; price and kind are those of the whole instance."""
    resources = offer.instance.resources
    if total > 1 and not is_divisible(resources, total):
        return None
    share = smallest_share(requirements, resources, free_blocks=free, total_blocks=total)
    if share is None or whole_mismatch(requirements, _with_resources(offer, share.resources)) is not None:
        return None
    return share


def _with_resources(offer: InstanceOfferWithAvailability, resources: Resources) -> InstanceOfferWithAvailability:
    instance = offer.instance.model_copy(update={"resources": resources})
    return offer.model_copy(update={"instance": instance})


def is_divisible(resources: Resources, blocks: int) -> bool:
    """Whether CPUs and GPUs can be split into so many equal parts."""
    return resources.cpus % blocks == 0 and len(resources.gpus) % blocks == 0


def _shown(
    offer: InstanceOfferWithAvailability, share: Share, total: int, view: View, *, free_blocks: int
) -> InstanceOfferWithAvailability:
    resources = share.resources
    if view.unallocated and 0 < free_blocks < total:
        resources = share_of(offer.instance.resources, free_blocks, total).resources
    elif view.full:
        resources = offer.instance.resources
    blocks = {"blocks": share.blocks, "total_blocks": total}
    return _with_resources(offer, resources).model_copy(update=blocks)


def _rank(offer: InstanceOfferWithAvailability) -> tuple[bool, float, str, str, str]:
    is_busy = offer.availability is InstanceAvailability.BUSY
    return is_busy, offer.price, offer.backend.value, offer.region, offer.instance.name


def distinct(offers: Iterable[BackendOffer]) -> list[BackendOffer]:
    """Several fleets may offer the same; it is kept once, where it came first."""
    kept: dict[tuple[object, ...], BackendOffer] = {}
    for found in offers:
        offer = found.offer
        spot = offer.instance.resources.spot
        key = (found.backend, offer.region, offer.instance.name, spot, offer.blocks, offer.total_blocks)
        kept.setdefault(key, found)
    return list(kept.values())

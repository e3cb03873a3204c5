"""Where a run or a fleet could get its instances: what the fleets have already, then what they may create."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.engine import RowMapping

from dstack.backends.base import Backend
from dstack.core.backends import LOCAL, BackendType
from dstack.core.configurations.fleet import FleetNodesSpec, InstanceGroupPlacement
from dstack.core.configurations.profiles import CreationPolicy, ProfileParams
from dstack.core.configurations.references import InstanceSelector
from dstack.core.errors import BackendError
from dstack.core.fleets import FleetSpec, FleetStatus
from dstack.core.instances import InstanceOfferWithAvailability, InstanceStatus, Requirements
from dstack.core.job_specs import merge_profile
from dstack.core.jobs import JobPlan, JobSpec
from dstack.core.runs import RunSpec
from dstack.server.configured_backends import ConfiguredBackends
from dstack.server.db.engine import Database
from dstack.server.db.queries import fleets as queries
from dstack.server.db.queries.instances import count_own_gpus
from dstack.server.operations.context import Context, InProject
from dstack.server.planning.combining import NotUsable, alone, combine, of_fleet, reusing
from dstack.server.planning.offers import (
    PART,
    BackendOffer,
    ExistingInstance,
    View,
    creatable,
    distinct,
    reusable,
)
from dstack.server.planning.selecting import FleetName, InstanceNames, is_named, is_selected

logger = logging.getLogger(__name__)

SHOWN_OFFERS = 50
"""How many a plan lists unless it is asked for another number."""


@dataclass(frozen=True)
class Fleet:
    """A fleet of the project, as far as planning goes."""

    name: str
    project_name: str
    spec: FleetSpec
    project_id: UUID
    is_imported: bool = False
    instances: Sequence[RowMapping] = field(default_factory=list)
    own_gpus: int = 0
    """Of the server's own machine, those that jobs have."""

    @property
    def called(self) -> FleetName:
        return FleetName(self.name, self.project_name, self.is_imported)

    @property
    def is_cluster(self) -> bool:
        return self.spec.configuration.placement is InstanceGroupPlacement.CLUSTER

    @property
    def may_create(self) -> bool:
        """Hosts of an SSH fleet are given; a cloud fleet is full once it has `nodes.max` instances."""
        nodes = self.spec.configuration.nodes or FleetNodesSpec(min=0, target=0)
        has_room = nodes.max is None or len(self.instances) < nodes.max
        return self.spec.configuration.ssh_config is None and has_room

    def new_to(self, offers: Iterable[BackendOffer]) -> list[BackendOffer]:
        """The server's own machine is there once."""
        has_own = any(instance["backend"] == LOCAL for instance in self.instances)
        return [found for found in offers if not (has_own and found.backend == LOCAL)]


@dataclass(frozen=True)
class Market:
    """All there is to choose from."""

    fleets: Sequence[Fleet]
    offers: Sequence[BackendOffer]
    """Of the project's own backends."""
    foreign: Mapping[UUID, Sequence[BackendOffer]] = field(default_factory=dict)
    """Of the backends of projects whose fleets are imported."""

    def offers_for(self, fleet: Fleet) -> Sequence[BackendOffer]:
        """Of the backends that the fleet is made of."""
        return self.foreign[fleet.project_id] if fleet.is_imported else self.offers


@dataclass(frozen=True)
class Wish:
    """What is looked for. `ignore_fleets`: just show what the backends have, whatever the fleets allow."""

    requirements: Requirements
    profile: ProfileParams
    view: View = PART
    ignore_fleets: bool = False


def wish_of(run_spec: RunSpec, job_spec: JobSpec, *, view: View = PART, for_offers_only: bool = False) -> Wish:
    """`for_offers_only`: fleets matter only where the run names some."""
    configuration = merge_profile(run_spec)
    return Wish(
        job_spec.requirements,
        configuration,
        view,
        ignore_fleets=for_offers_only and configuration.fleets is None,
    )


async def list_for_run(
    ctx: Context,
    at: InProject,
    run_spec: RunSpec,
    job_specs: Iterable[JobSpec],
    *,
    offers_only: bool = False,
    view: View = PART,
) -> list[list[InstanceOfferWithAvailability]]:
    """For each job all that it could get, best first."""
    market = await load_market(ctx.database, ctx.backends, at.project.id)
    wishes = [wish_of(run_spec, spec, view=view, for_offers_only=offers_only) for spec in job_specs]
    return [job_offers(market, wish) for wish in wishes]


async def load_market(database: Database, backends: ConfiguredBackends, project_id: UUID) -> Market:
    """The project's fleets and what its backends offer now. A backend that fails is told in the log."""
    fleets, offers = await asyncio.gather(
        _load_fleets(database, project_id), list_offers(await backends.list_of_project(project_id))
    )
    owners = {fleet.project_id for fleet in fleets if fleet.is_imported}
    foreign = {id: await list_offers(await backends.list_of_project(id)) for id in sorted(owners)}
    return Market(fleets, offers, foreign)


async def list_offers(backends: Iterable[Backend]) -> list[BackendOffer]:
    """Of all these backends, asked at the same time."""
    found = await asyncio.gather(*(_list_offers(backend) for backend in backends))
    return [offer for offers in found for offer in offers]


async def _list_offers(backend: Backend) -> list[BackendOffer]:
    try:
        offers = await backend.list_offers(None)
    except BackendError as error:
        logger.warning("Backend %s does not list its offers: %s", backend.type, error)
        return []
    return [BackendOffer(backend.type, offer) for offer in offers]


async def _load_fleets(database: Database, project_id: UUID) -> list[Fleet]:
    async with database.session() as session:
        rows = await queries.list_of_project(session, project_id, only_active=True, with_imported=True)
        rows = [row for row in rows if row["status"] == FleetStatus.ACTIVE.value]
        instances: dict[UUID, list[RowMapping]] = {row["id"]: [] for row in rows}
        for instance in await queries.list_instances(session, list(instances)):
            if instance["status"] != InstanceStatus.TERMINATED.value:
                instances[instance["fleet_id"]].append(instance)
        own_gpus = await count_own_gpus(session)
    return [
        Fleet(
            row["name"],
            row["project_name"],
            FleetSpec.model_validate_json(row["spec"], extra="ignore"),
            row["project_id"],
            row["project_id"] != project_id,
            instances[row["id"]],
            own_gpus,
        )
        for row in rows
    ]


def job_offers(market: Market, wish: Wish) -> list[InstanceOfferWithAvailability]:
    """Existing instances first, idle ones before busy ones; then what may be created; each by price."""
    existing: list[tuple[bool, float, InstanceOfferWithAvailability]] = []
    new: list[BackendOffer] = []
    for fleet in _candidates(market.fleets, wish):
        needed = reusing(fleet.spec, wish.requirements, wish.profile.spot_policy)
        if not isinstance(needed, NotUsable):
            instances = [
                _existing(row, fleet.own_gpus) for row in _targeted(fleet, wish.profile.instances) if row["offer"]
            ]
            for found in reusable(instances, needed, alone(needed, wish.profile).limits, view=wish.view):
                existing.append((not found.offer.availability.is_available(), found.offer.price, found.offer))
        new += _creatable_in(fleet, market, wish)
    if wish.ignore_fleets and wish.profile.creation_policy is not CreationPolicy.REUSE:
        asked = alone(wish.requirements, wish.profile)
        new = creatable(_possible(market.offers, asked.requirements), asked.requirements, asked.limits)
    existing.sort(key=lambda found: found[:2])
    created = sorted(distinct(new), key=lambda found: found.offer.price)
    return [offer for *_, offer in existing] + [found.offer for found in created]


def _creatable_in(fleet: Fleet, market: Market, wish: Wish) -> list[BackendOffer]:
    combined = combine(fleet.spec, wish.requirements, wish.profile)
    if isinstance(combined, NotUsable) or not _may_create(fleet, wish):
        return []
    return creatable(
        _possible(fleet.new_to(market.offers_for(fleet)), combined.requirements),
        combined.requirements,
        combined.limits,
        blocks=fleet.spec.configuration.blocks,
        view=wish.view,
    )


def fleet_offers(market: Market, spec: FleetSpec) -> list[InstanceOfferWithAvailability]:
    """What a fleet could be made of, cheapest first."""
    if spec.configuration.ssh_config is not None:
        return []
    wanted = of_fleet(spec)
    found = creatable(
        _possible(market.offers, wanted.requirements),
        wanted.requirements,
        wanted.limits,
        blocks=spec.configuration.blocks,
    )
    return [offer.offer for offer in found]


def _possible(offers: Iterable[BackendOffer], requirements: Requirements) -> list[BackendOffer]:
    """Machines that are ours to begin with are not reserved anywhere."""
    return [
        found
        for found in offers
        if requirements.reservation is None or found.offer.backend is not BackendType.REMOTE
    ]


def _candidates(fleets: Iterable[Fleet], wish: Wish) -> list[Fleet]:
    return [
        fleet
        for fleet in fleets
        if is_named(fleet.called, wish.profile.fleets) and (fleet.is_cluster or not wish.requirements.multinode)
    ]


def _may_create(fleet: Fleet, wish: Wish) -> bool:
    is_open = wish.profile.creation_policy is not CreationPolicy.REUSE and wish.profile.instances is None
    return is_open and not wish.ignore_fleets and fleet.may_create


def _targeted(fleet: Fleet, selectors: list[InstanceSelector] | None) -> list[RowMapping]:
    """The run may name the instances that it wants."""
    return [row for row in fleet.instances if is_selected(_names(fleet, row), selectors)]


def _names(fleet: Fleet, row: RowMapping) -> InstanceNames:
    address = json.loads(row["address"]) if row["address"] else {}
    return InstanceNames(fleet.called, row["instance_num"], row["name"], address.get("hostname"))


def _existing(row: RowMapping, own_gpus: int) -> ExistingInstance:
    return ExistingInstance(
        id=row["id"],
        backend=row["backend"] or "",
        status=InstanceStatus(row["status"]),
        offer=InstanceOfferWithAvailability.model_validate_json(row["offer"], extra="ignore"),
        total_blocks=row["total_blocks"] or 1,
        busy_blocks=row["busy_blocks"],
        unreachable=row["unreachable_since"] is not None and row["backend"] != LOCAL,
        busy_gpus=own_gpus if row["backend"] == LOCAL else 0,
    )


def job_plan(
    job_spec: JobSpec,
    offers: list[InstanceOfferWithAvailability],
    *,
    max_offers: int | None = None,
    reverse: bool = False,
) -> JobPlan:
    """The first `max_offers`, counted and priced over all. `reverse`: the dearest first."""
    ordered = offers[::-1] if reverse else offers
    return JobPlan(
        job_spec=job_spec,
        offers=ordered[: max_offers or SHOWN_OFFERS],
        total_offers=len(offers),
        max_price=highest_price(offers),
    )


def highest_price(offers: Iterable[InstanceOfferWithAvailability]) -> float | None:
    """In dollars per hour; None without offers."""
    return max((offer.price for offer in offers), default=None)

"""What is done about an instance: an offer is chosen, the backend makes or ends it. All idempotent."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.backends.base import InstanceAddress, InstanceRequest
from dstack.core.backends import LOCAL
from dstack.core.canonical import dump_json
from dstack.core.errors import BackendError, BackendNotAvailable, HostKeyChanged, HostUnfit
from dstack.core.instances import (
    InstanceOfferWithAvailability,
    InstanceStatus,
    InstanceTerminationReason,
    Requirements,
)
from dstack.core.server_config import REMOTE_BACKENDS
from dstack.server.db.tables import BackendRow, FleetRow, InstanceRow, ProjectRow
from dstack.server.hosts.connections import dump_address
from dstack.server.orchestrator.decision import Effect, EffectHandler, Facts, Key, TerminalEffectError
from dstack.server.orchestrator.instances.rules import (
    ChooseOffer,
    DeployAgent,
    EnsureInstance,
    EnsureTerminated,
    RemoveAgent,
)
from dstack.server.orchestrator.world import World
from dstack.server.planning import ssh
from dstack.server.planning.matching import block_count
from dstack.server.planning.new_instance import limits_of
from dstack.server.planning.offers import Limits, offer_mismatch

logger = logging.getLogger(__name__)

LOCAL_SLOTS_PER_CPU = 4
MIN_LOCAL_SLOTS = 16
"""The server's own machine is shared by so many jobs at least (ADR 0005)."""


async def choose_offer(effect: ChooseOffer, world: World, key: Key) -> Facts:
    """The cheapest that does, of all backends that the fleet allows for."""
    row, fleet, types, has_local = await _wanted(world, key)
    needed = Requirements.model_validate_json(row.requirements, extra="ignore") if row.requirements else None
    profile = json.loads(row.profile or "{}")
    limits, place = limits_of(profile), profile.get("place")
    found: list[tuple[str, InstanceOfferWithAvailability]] = []
    refusals: list[str] = []
    for type_name in types:
        if type_name == LOCAL and has_local:
            continue
        try:
            backend = await world.backends.get(row.project_id, type_name)
            offers = await backend.list_offers(needed)
        except (BackendError, BackendNotAvailable) as error:
            if getattr(error, "retryable", False):
                raise
            refusals.append(f"{type_name}: {error}")
            continue
        for offer in offers:
            why_not = _not_at(offer, type_name, place) or _why_not(offer, type_name, needed, fleet, limits)
            if why_not is None:
                zones = {"availability_zones": limits.zones_of(offer)}
                found.append((type_name, offer.model_copy(update=zones)))
            else:
                refusals.append(f"{offer.instance.name} {why_not}")
    if not found:
        raise _no_offers("; ".join(dict.fromkeys(refusals)) or "no backend has an offer")
    type_name, offer = min(found, key=lambda one: one[1].price)
    return _granted(row, type_name, offer, fleet)


def _granted(
    row: InstanceRow, type_name: str, offer: InstanceOfferWithAvailability, fleet: Mapping[str, Any]
) -> Facts:
    resources = offer.instance.resources
    if type_name == LOCAL:
        total = max(MIN_LOCAL_SLOTS, LOCAL_SLOTS_PER_CPU * resources.cpus)
    else:
        total = max(block_count(fleet.get("blocks", 1), resources), row.total_blocks or 1)
    return {
        "offer": dump_json(offer.model_copy(update={"total_blocks": total})),
        "backend": type_name,
        "region": offer.region,
        "price": offer.price,
        "total_blocks": total,
    }


def _why_not(
    offer: InstanceOfferWithAvailability,
    type_name: str,
    needed: Requirements | None,
    fleet: Mapping[str, Any],
    limits: Limits,
) -> str | None:
    if not offer.availability.is_available():
        return f"is {offer.availability.value.replace('_', ' ')}"
    if needed is None:
        return limits.mismatch(offer)
    return offer_mismatch(type_name, offer, needed, limits, blocks=fleet.get("blocks", 1))


def _not_at(offer: InstanceOfferWithAvailability, type_name: str, place: list[str] | None) -> str | None:
    """The job it is made for has volumes there: own type of the backend, region, zone."""
    if place is None:
        return None
    backend, region, zone = place
    is_there = type_name == backend and offer.region.lower() == region.lower()
    if is_there and (not zone or offer.availability_zones is None or zone in offer.availability_zones):
        return None
    return f"is not where the volumes are ({backend}, {zone or region})"


def _no_offers(why: str) -> TerminalEffectError:
    message = f"No capacity: {why}"
    reason = InstanceTerminationReason.NO_OFFERS.value
    return TerminalEffectError(message, {"terminate_requested": reason, "termination_reason_message": message})


async def ensure_instance(effect: EnsureInstance, world: World, key: Key) -> Facts:
    """Its name and offer are on record, so a call whose answer was lost is simply made again."""
    async with world.database.session() as session:
        query = select(InstanceRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == InstanceRow.project_id)
        row, project_name = (await session.execute(query.where(InstanceRow.id == key.id))).one()
    if row.backend is None or row.offer is None:
        raise TerminalEffectError(f"instance {row.name} has no offer yet")
    backend = await world.backends.get(row.project_id, row.backend)
    offer = InstanceOfferWithAvailability.model_validate_json(row.offer, extra="ignore")
    tags = json.loads(row.profile or "{}").get("tags") or {}
    name = backend_name(row.name, row.id)
    request = InstanceRequest(name=name, project_name=project_name, offer=offer, tags=tags)
    try:
        address = await backend.ensure_instance(request)
    except BackendError as error:
        if error.retryable:
            raise
        raise _no_offers(str(error)) from error
    return {} if address is None else {"address": dump_address(address)}


async def deploy_agent(effect: DeployAgent, world: World, key: Key) -> Facts:
    """Safe to repeat. What the host has becomes its offer; a failure is told as the instance's last error."""
    async with world.database.session() as session:
        row = (await session.execute(select(InstanceRow).where(InstanceRow.id == key.id))).scalar_one()
        await _assert_let_go(session, row)
    deployed = await world.ssh_hosts.deploy(key.id)
    where, details = deployed.target, json.loads(row.ssh_details or "{}")
    address = InstanceAddress(
        backend_id=str(key.id),
        hostname=where.hostname,
        ssh_port=where.port,
        username=where.username,
        remote_agent_socket=deployed.agent_socket,
        details={"docker": deployed.docker},
    )
    info = await world.agents.client(address).info()
    address = replace(address, internal_ip=ssh.internal_address(details, where.hostname, info.host))
    resources = ssh.resources_of(info.host)
    total = block_count(details.get("blocks") or 1, resources)
    return {
        "address": dump_address(address),
        "agent_info": json.dumps(info.to_json()),
        "offer": dump_json(ssh.offer_of(resources, total)),
        "total_blocks": total,
    }


async def _assert_let_go(session: AsyncSession, row: InstanceRow) -> None:
    """Raises HostUnfit while the agent of an earlier instance is being taken off the same host."""
    earlier = select(InstanceRow.name).where(
        InstanceRow.ssh_hostname == row.ssh_hostname,
        InstanceRow.status != InstanceStatus.TERMINATED.value,
        or_(InstanceRow.status == InstanceStatus.TERMINATING.value, InstanceRow.terminate_requested.is_not(None)),
        InstanceRow.id != row.id,
    )
    name = await session.scalar(earlier.limit(1))
    if name is not None:
        raise HostUnfit(f"{row.ssh_hostname} is still being let go of as instance {name!r}")


async def remove_agent(effect: RemoveAgent, world: World, key: Key) -> Facts:
    """The host is as it was before. One that shows another key by now is left alone."""
    try:
        await world.ssh_hosts.remove(key.id)
    except HostKeyChanged as error:
        logger.warning("instance=%s is let go of with the agent that may be on it: %s", key.id, error)
    return {"finished_at": world.clock()}


async def ensure_terminated(effect: EnsureTerminated, world: World, key: Key) -> Facts:
    """True of the world once the backend says so."""
    async with world.database.session() as session:
        row = (await session.execute(select(InstanceRow).where(InstanceRow.id == key.id))).scalar_one()
    try:
        backend = await world.backends.get(row.project_id, row.backend or "")
    except BackendNotAvailable:
        return {"finished_at": world.clock()}
    is_gone = await backend.ensure_terminated(backend_name(row.name, row.id))
    return {"finished_at": world.clock()} if is_gone else {}


def backend_name(name: str, id: UUID) -> str:
    """Unique in a backend that several projects or servers share, and never used twice."""
    return f"{name}-{id.hex[:8]}"


async def _wanted(world: World, key: Key) -> tuple[InstanceRow, Mapping[str, Any], list[str], bool]:
    """The row, its fleet's configuration, the backends that may be asked, and whether this machine is taken."""
    async with world.database.session() as session:
        query = select(InstanceRow, FleetRow.spec).outerjoin(FleetRow, FleetRow.id == InstanceRow.fleet_id)
        row, fleet_spec = (await session.execute(query.where(InstanceRow.id == key.id))).one()
        names = select(BackendRow.type).where(BackendRow.project_id == row.project_id)
        types = list(await session.scalars(names.order_by(BackendRow.type)))
        local = select(InstanceRow.id).where(
            InstanceRow.project_id == row.project_id,
            InstanceRow.backend == LOCAL,
            InstanceRow.fleet_id == row.fleet_id,
            InstanceRow.status != InstanceStatus.TERMINATED.value,
            InstanceRow.id != row.id,
        )
        has_local = (await session.execute(local)).first() is not None
    fleet = json.loads(fleet_spec)["configuration"] if fleet_spec else {}
    allowed = fleet.get("backends")
    return row, fleet, [name for name in types if allowed is None or wire_type(name) in allowed], has_local


def wire_type(type_name: str) -> str:
    """The value of a backend on the wire."""
    return "remote" if type_name in REMOTE_BACKENDS else type_name


HANDLERS: Mapping[type[Effect], EffectHandler] = {
    ChooseOffer: choose_offer,
    EnsureInstance: ensure_instance,
    EnsureTerminated: ensure_terminated,
    DeployAgent: deploy_agent,
    RemoveAgent: remove_agent,
}

"""Which waiting job gets which capacity: one queue per project, by priority and age. Pure (better B11).

Each group of jobs that must run together is placed as a whole: on instances that have room, cheapest first; or on
a new instance of a fleet that may grow; or told why there is none. A higher one in the queue never waits for a
lower one; a lower one may take room that a higher one cannot use.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from dstack.core.configurations.profiles import ProfileParams, SpotPolicy
from dstack.core.instances import InstanceStatus, Requirements
from dstack.server.orchestrator.decision import Decision, Key, Kind
from dstack.server.orchestrator.placement.facts import (
    Assign,
    CreateFor,
    FreeInstance,
    GrowingFleet,
    PlacementSnapshot,
    PlacementStatus,
    Refuse,
    RefuseVolumes,
    WaitingJob,
    Write,
)
from dstack.server.planning import offers, volumes
from dstack.server.planning.combining import Combined, NotUsable, combine, reusing
from dstack.server.planning.matching import Share, share_of_offer, slot_mismatch, slot_of, whole_mismatch
from dstack.server.planning.selecting import InstanceNames, is_named, is_selected
from dstack.server.planning.volumes import Place

MAX_ASSIGNMENTS = 200
"""In one pass, so that a transaction stays short."""
MAX_REASONS = 8
"""Told to somebody whose job finds no room."""
CREATION_RETRY = timedelta(seconds=15)
"""A job for which a backend had nothing asks for a new instance again after this."""
NO_FLEETS = "No fleets"
"""How the message begins when no fleet could be used at all; `status_message` tells by it."""


class Rank(NamedTuple):
    """An instance's place among those of its fleet. `number` settles ties."""

    price: float
    free_blocks: int
    number: int
    id: UUID


class _Board:
    """The capacity that is left while the queue is gone through."""

    def __init__(self, snapshot: PlacementSnapshot) -> None:
        self.instances = {one.id: one for one in snapshot.instances}
        self._ranked: dict[UUID, list[Rank]] = {}
        for number, one in enumerate(sorted(snapshot.instances, key=_price)):
            self._ranked.setdefault(one.fleet_id, []).append(Rank(_price(one), one.free_blocks, number, one.id))
        for ranks in self._ranked.values():
            ranks.sort()
        self._numbers = {rank.id: rank.number for ranks in self._ranked.values() for rank in ranks}
        self.fleets = {one.id: one for one in snapshot.fleets}
        self.volumes = snapshot.volumes
        coming = [one for one in snapshot.instances if one.is_coming]
        self.is_coming = any(one.busy_blocks == 0 for one in coming)
        local = {fleet.id for fleet in snapshot.fleets if fleet.is_local}
        self.is_local_coming = any(one.fleet_id in local for one in coming)

    @property
    def fleets_with_instances(self) -> list[UUID]:
        """Those with the cheapest instance first."""
        return list(self._ranked)

    def members(self, fleet_id: UUID) -> Iterator[FreeInstance]:
        """Instances of the fleet with room: cheapest first, among them those with the least room."""
        members = (self.instances[rank.id] for rank in self._ranked.get(fleet_id, ()))
        return (one for one in members if one.free_blocks > 0)

    def take(self, taken: Assign, sign: int = 1) -> None:
        instance = self.instances[taken.instance.id]
        gpus = sign * taken.gpus
        blocks = instance.busy_blocks + sign * taken.blocks
        self._change(replace(instance, busy_blocks=blocks, busy_gpus=instance.busy_gpus + gpus))
        if instance.is_local and gpus:  # the same machine, by way of another fleet
            for one in list(self.instances.values()):
                if one.is_local and one.id != instance.id:
                    self.instances[one.id] = replace(one, busy_gpus=one.busy_gpus + gpus)

    def _change(self, instance: FreeInstance) -> None:
        ranks, number = self._ranked[instance.fleet_id], self._numbers[instance.id]
        before = Rank(_price(instance), self.instances[instance.id].free_blocks, number, instance.id)
        del ranks[bisect_left(ranks, before)]
        insort(ranks, before._replace(free_blocks=instance.free_blocks))
        self.instances[instance.id] = instance

    def give_back(self, taken: Assign) -> None:
        self.take(taken, sign=-1)


def decide(snapshot: PlacementSnapshot, now: datetime) -> Decision[PlacementStatus]:
    """As many groups as fit into one pass."""
    board = _Board(snapshot)
    writes: list[Write] = []
    look_again_at: datetime | None = None
    groups = group_jobs(snapshot.jobs)
    done = 0
    for group in groups:
        if len(writes) >= MAX_ASSIGNMENTS:
            break
        done += 1
        unusable = _volume_problem(group, board)
        if unusable is not None:
            writes.append(RefuseVolumes(tuple(job.id for job in group), unusable))
            continue
        placed: Sequence[Assign | CreateFor] | None = _place_existing(group, board)
        retry_at = _retry_at(group, now)
        if placed is None and retry_at is None and not board.is_local_coming:
            placed = _place_new(group, board)
        taken = None if placed is not None else _volumes_taken(group, board)
        if placed is not None:
            writes += placed
        elif taken is not None:
            writes.append(RefuseVolumes(tuple(job.id for job in group), taken))
        elif retry_at is not None:
            look_again_at = retry_at if look_again_at is None else min(look_again_at, retry_at)
        elif not board.is_coming and not board.is_local_coming and not _waits_for_volumes(group, board):
            writes += _refuse(group, board)
    return Decision(
        PlacementStatus.ACTIVE,
        writes=tuple(writes),
        wake=_wake(writes),
        look_again_at=look_again_at,
        again=done < len(groups),
    )


def group_jobs(jobs: tuple[WaitingJob, ...]) -> list[tuple[WaitingJob, ...]]:
    """Jobs of one replica stand together in the queue, at the place of the first."""
    groups: dict[tuple[UUID, int], list[WaitingJob]] = {}
    for job in sorted(jobs, key=lambda job: (-job.priority, job.submitted_at, job.replica_num, job.job_num)):
        groups.setdefault((job.run_id, job.replica_num), []).append(job)
    return [tuple(group) for group in groups.values()]


def _retry_at(group: tuple[WaitingJob, ...], now: datetime) -> datetime | None:
    """When a new instance may be asked for again; None: now."""
    job = group[0]
    if job.capacity_error is None or job.last_tried_at is None:
        return None
    at = job.last_tried_at + CREATION_RETRY
    return at if now < at else None


def _place_existing(group: tuple[WaitingJob, ...], board: _Board) -> list[Assign] | None:
    """All or nothing; the nodes of a group share one fleet."""
    before = board.volumes
    for fleet_id in _fleets_with_instances(group[0], board):
        taken: list[Assign] = []
        for job in group:
            found = _best(job, fleet_id, board)
            if found is None:
                break
            board.take(found)
            board.volumes = volumes.attach(board.volumes, found.mounted, found.instance.id)
            taken.append(found)
        if len(taken) == len(group):
            return taken
        for assigned in taken:
            board.give_back(assigned)
        board.volumes = before
    return None


def _fleets_with_instances(job: WaitingJob, board: _Board) -> list[UUID]:
    if job.fleet_id is not None:
        return [job.fleet_id]
    return board.fleets_with_instances


def _price(instance: FreeInstance) -> float:
    return instance.offer.price if instance.offer is not None else 0.0


def _best(job: WaitingJob, fleet_id: UUID, board: _Board) -> Assign | None:
    fleet = board.fleets.get(fleet_id)
    if fleet is None or not _allows_fleet(job, fleet):
        return None
    if isinstance(needed := _needed_of_existing(job, fleet), NotUsable):
        return None
    asking = replace(job, requirements=needed)
    for instance in board.members(fleet_id):
        share = share_for(asking, instance) if _allows_instance(job, instance, fleet) else None
        mounted = volumes.choose(job.mounts, board.volumes, instance.place, instance.id)
        if share is not None and mounted is not None:
            return Assign(job, instance, share.blocks, len(share.resources.gpus), tuple(mounted))
    return None


def _needed_of_existing(job: WaitingJob, fleet: GrowingFleet) -> Requirements | NotUsable:
    policy = job.profile.get("spot_policy")
    if fleet.spec is None:
        return job.requirements
    return reusing(fleet.spec, job.requirements, None if policy is None else SpotPolicy(policy))


def _allows_fleet(job: WaitingJob, fleet: GrowingFleet) -> bool:
    return is_named(fleet.called, job.limits.fleets)


def _allows_instance(job: WaitingJob, instance: FreeInstance, fleet: GrowingFleet) -> bool:
    offer, limits = instance.offer, job.limits
    names = InstanceNames(fleet.called, instance.num, instance.name, instance.hostname)
    if offer is None or not is_selected(names, limits.instances):
        return False
    allowed = offers.Limits(
        backends=_folded(limits.backends),
        regions=_folded(limits.regions),
        availability_zones=_folded(limits.availability_zones),
        instance_types=_folded(limits.instance_types),
    )
    return allowed.mismatch(offer) is None


def _folded(names: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(name.lower() for name in names)


def share_for(job: WaitingJob, instance: FreeInstance) -> Share | None:
    """What of the instance the job takes; None when it does not fit.

    The local machine is shared: a job takes one slot of it and the GPUs that it needs, and all else is compared
    with the whole machine, its own defaults left out (ADR 0005).
    """
    offer = instance.offer
    if offer is None or instance.is_coming:
        return None
    if instance.is_local:
        free_gpus = len(offer.instance.resources.gpus) - instance.busy_gpus
        return slot_of(job.requirements, offer, free_gpus=free_gpus)
    return share_of_offer(
        job.requirements, offer, free_blocks=instance.free_blocks, total_blocks=instance.total_blocks
    )


def _place_new(group: tuple[WaitingJob, ...], board: _Board) -> list[CreateFor] | None:
    """One new instance a job, all in one fleet."""
    job = group[0]
    if not job.limits.may_create or job.limits.instances is not None:
        return None
    if any(one.mounts for one in group):
        return _place_new_at_volumes(group, board)
    for fleet in board.fleets.values():
        if job.fleet_id not in (None, fleet.id) or not _allows_fleet(job, fleet):
            continue
        if fleet.room == 0 or isinstance(terms := terms_of(job, fleet), NotUsable):
            continue
        if fleet.is_local:
            board.is_local_coming = True
            board.fleets[fleet.id] = replace(fleet, room=0)
            return [CreateFor(job, fleet, terms)]  # the others of the group find room on it, once it is there
        if fleet.room < len(group):
            continue
        if len(group) > 1 and not fleet.is_cluster:
            continue
        if not _among_any(job.limits.backends, fleet.backends):
            continue
        board.fleets[fleet.id] = replace(fleet, room=fleet.room - len(group))
        return [CreateFor(one, fleet, terms) for one in group]
    return None


def _place_new_at_volumes(group: tuple[WaitingJob, ...], board: _Board) -> list[CreateFor] | None:
    """As `_place_new`, where the volumes are, which each new instance has for itself."""
    job = group[0]
    for fleet in board.fleets.values():
        if job.fleet_id not in (None, fleet.id) or not _allows_fleet(job, fleet) or fleet.is_local:
            continue
        if fleet.room < len(group) or (len(group) > 1 and not fleet.is_cluster):
            continue
        terms = terms_of(job, fleet)
        if isinstance(terms, NotUsable) or not _among_any(job.limits.backends, fleet.backends):
            continue
        created = _created_at_volumes(group, fleet, terms, board)
        if created is not None:
            board.fleets[fleet.id] = replace(fleet, room=fleet.room - len(group))
            return created
    return None


def _created_at_volumes(
    group: tuple[WaitingJob, ...], fleet: GrowingFleet, terms: Combined, board: _Board
) -> list[CreateFor] | None:
    known, created = board.volumes, []
    for number, job in enumerate(group):
        places = [one for one in volumes.places(job.mounts, known) if _may_be_at(one, fleet, job)]
        if job.mounts and not places:
            return None
        place = places[0] if places else None
        mounted = volumes.choose(job.mounts, known, place, None) if place is not None else []
        created.append(CreateFor(job, fleet, terms, tuple(mounted or ()), place))
        known = volumes.attach(known, mounted or (), UUID(int=number))
    board.volumes = known
    return created


def _may_be_at(place: Place, fleet: GrowingFleet, job: WaitingJob) -> bool:
    is_of_fleet = fleet.own_backends is None or place.backend in fleet.own_backends
    regions = job.limits.regions
    return is_of_fleet and (regions is None or place.region.lower() in {one.lower() for one in regions})


def _volume_problem(group: tuple[WaitingJob, ...], board: _Board) -> str | None:
    """Why the group can never have its volumes."""
    return next(filter(None, (volumes.problem(job.mounts, board.volumes) for job in group)), None)


def _volumes_taken(group: tuple[WaitingJob, ...], board: _Board) -> str | None:
    """Which volumes other jobs have, on instances that the group cannot share."""
    return next(filter(None, (volumes.taken(job.mounts, board.volumes) for job in group)), None)


def _waits_for_volumes(group: tuple[WaitingJob, ...], board: _Board) -> bool:
    """For some to be made or detached; the placement is looked at again then."""
    return any(volumes.is_coming(job.mounts, board.volumes) for job in group)


def terms_of(job: WaitingJob, fleet: GrowingFleet) -> Combined | NotUsable:
    """What a new instance of the fleet must be like to do for the job."""
    if fleet.spec is None:
        return Combined(job.requirements, offers.Limits())
    return combine(fleet.spec, job.requirements, ProfileParams.model_validate(job.profile, extra="ignore"))


def _among_any(wanted: tuple[str, ...] | None, offered: tuple[str, ...] | None) -> bool:
    return wanted is None or offered is None or bool(set(wanted) & set(offered))


def _refuse(group: tuple[WaitingJob, ...], board: _Board) -> list[Refuse]:
    error = explain(group[0], board.fleets.values(), board.instances.values(), nodes=len(group))
    ids = tuple(job.id for job in group if job.capacity_error != error)
    return [Refuse(ids, error)] if ids else []


def explain(
    job: WaitingJob, fleets: Iterable[GrowingFleet], instances: Iterable[FreeInstance], *, nodes: int
) -> str:
    """Why there is no capacity, for people; begins with `NO_FLEETS` when no fleet could be used at all."""
    allowed = [fleet for fleet in fleets if _allows_fleet(job, fleet)]
    if not allowed:
        wanted = f" among {', '.join(map(str, job.limits.fleets))}" if job.limits.fleets else ""
        return f"{NO_FLEETS}{wanted}: create a fleet first"
    by_id = {fleet.id: fleet for fleet in allowed}
    reasons = [_why_not(job, one, by_id[one.fleet_id]) for one in instances if one.fleet_id in by_id]
    reasons += [
        f"fleet {fleet.name} does not fit ({terms.reason})"
        for fleet in allowed
        if fleet.room > 0 and isinstance(terms := terms_of(job, fleet), NotUsable)
    ]
    shown = _listed(reasons) or f"fleets {', '.join(f.name for f in allowed)} may not grow"
    return f"No capacity for {nodes} node{'s' if nodes > 1 else ''}: {shown}"


def _listed(reasons: Iterable[str]) -> str:
    """The first few: a fleet may have a thousand instances."""
    different = list(dict.fromkeys(reasons))
    more = len(different) - MAX_REASONS
    return "; ".join(different[:MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _why_not(job: WaitingJob, instance: FreeInstance, fleet: GrowingFleet) -> str:
    if instance.offer is None or instance.is_coming:
        return f"{instance.name} is not ready yet"
    if not _allows_instance(job, instance, fleet):
        return f"{instance.name} is not what the run allows for"
    if job.mounts:
        return f"{instance.name} is busy, or not where the volumes are"
    if instance.is_local:
        why = slot_mismatch(job.requirements, instance.offer)
        return f"{instance.name} {why or 'is busy'}"
    total = instance.total_blocks
    if share_of_offer(job.requirements, instance.offer, free_blocks=total, total_blocks=total) is not None:
        return f"{instance.name} is busy"
    return f"{instance.name} {whole_mismatch(job.requirements, instance.offer) or 'has no part that does'}"


def _wake(writes: list[Write]) -> tuple[Key, ...]:
    keys: dict[Key, None] = {}
    for write in writes:
        if isinstance(write, (Refuse, RefuseVolumes)):
            keys.update(dict.fromkeys(Key(Kind.JOB, id) for id in write.job_ids))
            continue
        keys[Key(Kind.JOB, write.job.id)] = None
        if isinstance(write, Assign) and write.instance.status is InstanceStatus.IDLE:
            keys[Key(Kind.INSTANCE, write.instance.id)] = None
    return tuple(keys)

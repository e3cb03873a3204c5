"""The queue and the capacity of one project, and how an assignment is recorded."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import CursorResult, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.backends import LOCAL
from dstack.core.configurations.mounts import MountPoint
from dstack.core.configurations.profiles import CreationPolicy, ProfileParams
from dstack.core.fleets import FleetSpec, FleetStatus
from dstack.core.instances import InstanceStatus, Requirements
from dstack.core.jobs import JobStatus
from dstack.core.runs import RunStatus
from dstack.core.server_config import REMOTE_BACKENDS
from dstack.server.db.engine import wake
from dstack.server.db.queries import instances as instance_queries
from dstack.server.db.queries import sharing
from dstack.server.db.tables import BackendRow, FleetRow, InstanceRow, JobRow, ProjectRow, RunRow
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind, StaleSnapshot, rank
from dstack.server.orchestrator.placement import mounting, rules
from dstack.server.orchestrator.placement.facts import (
    Assign,
    CreateFor,
    FreeInstance,
    GrowingFleet,
    Limits,
    PlacementSnapshot,
    PlacementStatus,
    Refuse,
    RefuseVolumes,
    WaitingJob,
)
from dstack.server.planning.new_instance import instance_values
from dstack.server.planning.offers import stored_offer
from dstack.server.planning.placed import Held, placed_values
from dstack.server.planning.volumes import mounts_of

MAX_LOADED = 500
"""Waiting jobs looked at in one pass: the first of the queue."""
UNLIMITED = 10_000
MAX_PRIORITY = 100
"""Of a run."""
_MOUNTS: TypeAdapter[list[MountPoint] | None] = TypeAdapter(list[MountPoint] | None)
T = TypeVar("T")
_INSTANCES = select(
    InstanceRow.id,
    InstanceRow.name,
    InstanceRow.fleet_id,
    InstanceRow.backend,
    InstanceRow.status,
    InstanceRow.offer,
    InstanceRow.total_blocks,
    InstanceRow.busy_blocks,
    InstanceRow.address,
    InstanceRow.instance_num,
    InstanceRow.terminate_requested,
    InstanceRow.unreachable_since,
)
_GONE = (InstanceStatus.TERMINATING.value, InstanceStatus.TERMINATED.value)


class PlacementKind:
    """See `decision.ResourceKind`. The key's id is the project's."""

    kind = Kind.PLACEMENT
    effects: Mapping[type[Effect], EffectHandler] = {}

    async def load(self, session: AsyncSession, id: UUID) -> PlacementSnapshot | None:
        """Five queries, two more when a job mounts volumes; two when nothing waits."""
        jobs = await _waiting_jobs(session, id)
        if not jobs:
            exists = await session.scalar(select(ProjectRow.id).where(ProjectRow.id == id))
            return None if exists is None else PlacementSnapshot(id, (), (), ())
        fleets = await _usable_fleets(session, id)
        types = await _backend_types(session, {fleet.project_id for fleet, _ in fleets})
        ids = [fleet.id for fleet, _ in fleets]
        living = (InstanceRow.fleet_id.in_(ids), InstanceRow.status.not_in(_GONE))
        rows = (await session.execute(_INSTANCES.where(*living))).all()
        usable = [row for row in rows if row.terminate_requested is None and _is_reachable(row)]
        has_own = any(row.backend == LOCAL for row in usable)
        own_gpus = await instance_queries.count_own_gpus(session) if has_own else 0
        return PlacementSnapshot(
            project_id=id,
            jobs=jobs,
            instances=tuple(_instance(row, own_gpus if row.backend == LOCAL else 0) for row in usable),
            fleets=tuple(
                replace(
                    _fleet(fleet, name, types.get(fleet.project_id, ()), rows),
                    project_id=fleet.project_id,
                    is_imported=fleet.project_id != id,
                )
                for fleet, name in fleets
            ),
            volumes=await mounting.load(session, id) if any(job.mounts for job in jobs) else {},
        )

    def decide(self, snapshot: PlacementSnapshot, now: datetime) -> Decision[PlacementStatus]:
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: PlacementSnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """Raises StaleSnapshot when a job or an instance is no longer what it was."""
        assigned: dict[tuple[UUID, int, int], list[Assign]] = defaultdict(list)
        for write in decision.writes:
            match write:
                case Assign(_, instance, blocks, gpus):
                    assigned[instance.id, blocks, gpus].append(write)
                case CreateFor() as new:
                    await _create_for(session, snapshot, new, now)
                case RefuseVolumes(job_ids, error):
                    await mounting.refuse(session, job_ids, error)
                case Refuse(job_ids, error):
                    waiting = (JobRow.id.in_(job_ids), JobRow.instance_id.is_(None))
                    await session.execute(update(JobRow).where(*waiting).values(capacity_error=error))
        taken: dict[UUID, int] = defaultdict(int)
        for (instance_id, blocks, _), writes in assigned.items():
            taken[instance_id] += blocks * len(writes)
            await _assign(session, writes)
        for instance_id, blocks in taken.items():
            await _take(session, instance_id, blocks)

    def priority(self, snapshot: PlacementSnapshot) -> int:
        """That of the most important job which waits. What has begun goes first: it gives capacity back, and a
        pass looks at all hosts of the project, so under load it had better serve many jobs at once."""
        return rank(max((job.priority for job in snapshot.jobs), default=0), has_begun=False)


def _is_reachable(row: Any) -> bool:
    """The local agent ends when it has nothing to do, and is started again for the next job."""
    return row.unreachable_since is None or row.backend == LOCAL


async def _usable_fleets(session: AsyncSession, project_id: UUID) -> list[tuple[FleetRow, str]]:
    """The project's own before those that it imports, with the names of their projects."""
    imported = FleetRow.id.in_(sharing.imported_fleet_ids(project_id))
    query = (
        select(FleetRow, ProjectRow.name)
        .join(ProjectRow, ProjectRow.id == FleetRow.project_id)
        .where(
            or_(FleetRow.project_id == project_id, imported),
            FleetRow.status == FleetStatus.ACTIVE.value,
            FleetRow.deleted_at.is_(None),
        )
        .order_by(FleetRow.project_id != project_id, FleetRow.created_at, FleetRow.id)
    )
    return [(fleet, name) for fleet, name in await session.execute(query)]


async def _backend_types(session: AsyncSession, project_ids: set[UUID]) -> dict[UUID, list[str]]:
    types: dict[UUID, list[str]] = {}
    query = select(BackendRow.project_id, BackendRow.type).where(BackendRow.project_id.in_(project_ids))
    for project_id, type_name in await session.execute(query):
        types.setdefault(project_id, []).append(type_name)
    return types


async def _waiting_jobs(session: AsyncSession, project_id: UUID) -> tuple[WaitingJob, ...]:
    query = (
        select(JobRow, RunRow.run_spec, RunRow.fleet_id)
        .join(RunRow, RunRow.id == JobRow.run_id)
        .where(
            JobRow.project_id == project_id,
            JobRow.status == JobStatus.SUBMITTED.value,
            JobRow.instance_id.is_(None),
            JobRow.terminate_requested.is_(None),
            RunRow.stop_requested.is_(None),
            RunRow.status.not_in([status.value for status in RunStatus if status.is_finished()]),
            RunRow.status != RunStatus.TERMINATING.value,
        )
        .order_by(JobRow.priority.desc(), JobRow.submitted_at, JobRow.run_id, JobRow.replica_num, JobRow.job_num)
        .limit(MAX_LOADED)
    )
    return tuple(_job(job, spec, fleet_id) for job, spec, fleet_id in (await session.execute(query)))


def _job(row: JobRow, run_spec: str, fleet_id: UUID | None) -> WaitingJob:
    spec = json.loads(row.job_spec)
    settings = json.loads(run_spec)
    return WaitingJob(
        id=row.id,
        run_id=row.run_id,
        replica_num=row.replica_num,
        job_num=row.job_num,
        priority=row.priority,
        submitted_at=row.submitted_at,
        requirements=Requirements.model_validate(spec["requirements"], extra="ignore"),
        limits=limits_of(settings),
        profile=profile_of(settings),
        fleet_id=fleet_id,
        capacity_error=row.capacity_error,
        last_tried_at=row.last_processed_at,
        mounts=mounts_of(_MOUNTS.validate_python(spec.get("volumes"))),
    )


def profile_of(run_spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `ProfileParams` that the configuration, or else the profile, gives."""
    profile = run_spec.get("profile") or {}
    found = {key: run_spec["configuration"].get(key) for key in ProfileParams.model_fields}
    return {key: profile.get(key) if value is None else value for key, value in found.items()}


def limits_of(run_spec: Mapping[str, Any]) -> Limits:
    """What the configuration, or else the profile, allows for."""
    asked = ProfileParams.model_validate(profile_of(run_spec), extra="ignore")
    return Limits(
        fleets=_tuple(asked.fleets),
        instances=_tuple(asked.instances),
        backends=_tuple([backend.value for backend in asked.backends] if asked.backends is not None else None),
        regions=_tuple(asked.regions),
        availability_zones=_tuple(asked.availability_zones),
        instance_types=_tuple(asked.instance_types),
        may_create=asked.creation_policy is not CreationPolicy.REUSE,
    )


def _tuple(values: Sequence[T] | None) -> tuple[T, ...] | None:
    return None if values is None else tuple(values)


def _instance(row: Any, busy_gpus: int) -> FreeInstance:
    hostname, zone = _whereabouts(row.address) if row.address else (None, "")
    return FreeInstance(
        id=row.id,
        name=row.name,
        fleet_id=row.fleet_id or row.id,
        backend=row.backend or "",
        status=InstanceStatus(row.status),
        offer=None if row.offer is None else stored_offer(row.offer),
        total_blocks=row.total_blocks or 0,
        busy_blocks=row.busy_blocks,
        busy_gpus=busy_gpus,
        zone=zone,
        num=row.instance_num,
        hostname=hostname,
    )


@lru_cache(maxsize=4096)
def _whereabouts(address: str) -> tuple[str | None, str]:
    """Its host name and its availability zone."""
    told = json.loads(address)
    return told.get("hostname"), str((told.get("details") or {}).get("availability_zone") or "")


def _fleet(row: FleetRow, project_name: str, types: Sequence[str], instances: Iterable[Any]) -> GrowingFleet:
    configuration = json.loads(row.spec)["configuration"]
    allowed = configuration.get("backends")
    wire = {name: "remote" if name in REMOTE_BACKENDS else name for name in types}
    usable = [name for name in types if allowed is None or wire[name] in allowed]
    nodes = configuration.get("nodes")
    members = sum(one.fleet_id == row.id for one in instances)
    is_local = usable == [LOCAL]
    limit = 1 if is_local else UNLIMITED
    if nodes is None or configuration.get("ssh_config") is not None or not usable:
        limit = 0
    elif nodes.get("max") is not None:
        limit = min(limit, nodes["max"])
    return GrowingFleet(
        id=row.id,
        name=row.name,
        room=max(limit - members, 0),
        project_name=project_name,
        is_cluster=configuration.get("placement") == "cluster",
        is_local=is_local,
        backends=tuple(wire[name] for name in usable),
        own_backends=tuple(usable),
        spec=_spec(row.spec),
    )


@lru_cache(maxsize=64)
def _spec(text: str) -> FleetSpec:
    """Read once: one with many hosts is long. Not to be changed."""
    return FleetSpec.model_validate_json(text, extra="ignore")


async def _assign(session: AsyncSession, writes: Sequence[Assign]) -> None:
    """Jobs that take as much of the same instance."""
    instance, blocks, gpus = writes[0].instance, writes[0].blocks, writes[0].gpus
    address = await session.scalar(select(InstanceRow.address).where(InstanceRow.id == instance.id))
    held = Held(blocks, instance.total_blocks, gpus)
    by_volumes: dict[tuple[str, ...], list[WaitingJob]] = defaultdict(list)
    for write in writes:
        by_volumes[mounting.names(write.mounted)].append(write.job)
    for names, jobs in by_volumes.items():
        await _give(session, jobs, instance, held, json.loads(address or "{}"), names)
    for write in writes:
        if write.mounted:
            await mounting.record(session, write.job.id, instance.id, write.mounted)


async def _give(
    session: AsyncSession,
    jobs: Sequence[WaitingJob],
    instance: FreeInstance,
    held: Held,
    address: Mapping[str, Any],
    volume_names: Sequence[str],
) -> None:
    waiting = (
        JobRow.id.in_([job.id for job in jobs]),
        JobRow.instance_id.is_(None),
        JobRow.status == JobStatus.SUBMITTED.value,
        JobRow.terminate_requested.is_(None),
    )
    values: dict[str, Any] = {
        "instance_id": instance.id,
        "fleet_id": instance.fleet_id,
        "blocks": held.blocks,
        "gpus": held.gpus,
        "capacity_error": None,
    }
    if instance.offer is not None:
        values |= placed_values(
            instance.name,
            instance.offer,
            address,
            held,
            is_local=instance.is_local,
            volume_names=volume_names,
        )
    await _expect(session, update(JobRow).where(*waiting).values(**values), len(jobs))
    runs = {job.run_id for job in jobs if job.fleet_id is None}
    if runs:
        await session.execute(update(RunRow).where(RunRow.id.in_(runs)).values(fleet_id=instance.fleet_id))


async def _take(session: AsyncSession, instance_id: UUID, blocks: int) -> None:
    """The one place where blocks are taken; guarded, so that no instance ever holds more than it has."""
    has_room = InstanceRow.busy_blocks + blocks <= InstanceRow.total_blocks
    which = (InstanceRow.id == instance_id, has_room, InstanceRow.status.not_in(_GONE))
    taken = update(InstanceRow).where(*which, InstanceRow.terminate_requested.is_(None))
    await _expect(session, taken.values(busy_blocks=InstanceRow.busy_blocks + blocks), 1)


async def _expect(session: AsyncSession, statement: Any, count: int) -> None:
    result = await session.execute(statement)
    if not isinstance(result, CursorResult) or result.rowcount != count:
        raise StaleSnapshot


async def _create_for(
    session: AsyncSession, snapshot: PlacementSnapshot, create: CreateFor, now: datetime
) -> None:
    """A pending instance with this job on it; what it is shows once an offer is chosen."""
    job, fleet, terms = create.job, create.fleet, create.terms
    spec = await session.scalar(
        select(FleetRow.spec).where(FleetRow.id == fleet.id, FleetRow.deleted_at.is_(None)).with_for_update()
    )
    if spec is None:
        raise StaleSnapshot
    nodes = json.loads(spec)["configuration"].get("nodes") or {}
    living = (InstanceRow.fleet_id == fleet.id, InstanceRow.status != InstanceStatus.TERMINATED.value)
    taken = set(await session.scalars(select(InstanceRow.instance_num).where(*living)))
    if nodes.get("max") is not None and len(taken) >= nodes["max"]:
        raise StaleSnapshot  # other projects that share the fleet make instances too
    num = next(num for num in range(len(taken) + 1) if num not in taken)
    values = instance_values(
        terms,
        fleet_id=fleet.id,
        fleet_name=fleet.name,
        project_id=fleet.project_id or snapshot.project_id,
        num=num,
        now=now,
        place=create.place,
    )
    blocks = 1
    configured = json.loads(spec)["configuration"].get("blocks", 1)
    if not fleet.is_local and isinstance(configured, int):
        blocks = configured
    values |= {"busy_blocks": blocks, "total_blocks": blocks}
    await session.execute(insert(InstanceRow), [values])
    new = FreeInstance(
        id=values["id"],
        name=values["name"],
        fleet_id=fleet.id,
        backend="",
        status=InstanceStatus.PENDING,
        offer=None,
        total_blocks=blocks,
        busy_blocks=blocks,
    )
    gpu = job.requirements.resources.gpu
    least = gpu.count.min or 0 if fleet.is_local and gpu is not None else None
    await _give(session, [job], new, Held(blocks, blocks, least), {}, mounting.names(create.mounted))
    if create.mounted:
        await mounting.record(session, job.id, new.id, create.mounted)
    wake(session, f"instance:{values['id']}", f"fleet:{fleet.id}")


KIND = PlacementKind()

"""What placement knows of the queue and the capacity of a project, and what it may write. Types without rules."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from dstack.core.backends import LOCAL
from dstack.core.configurations.references import EntityReference, InstanceSelector
from dstack.core.fleets import FleetSpec
from dstack.core.instances import InstanceOfferWithAvailability, InstanceStatus, Requirements
from dstack.server.planning.combining import Combined
from dstack.server.planning.selecting import FleetName
from dstack.server.planning.volumes import Mount, Mounted, Place, Volumes


class PlacementStatus(str, enum.Enum):
    """The queue of a project is always active."""

    ACTIVE = "active"


@dataclass(frozen=True)
class Limits:
    """What a run allows for, besides what its jobs need; None: anything."""

    fleets: tuple[EntityReference, ...] | None = None
    instances: tuple[InstanceSelector, ...] | None = None
    backends: tuple[str, ...] | None = None
    """As on the wire."""
    regions: tuple[str, ...] | None = None
    availability_zones: tuple[str, ...] | None = None
    instance_types: tuple[str, ...] | None = None
    may_create: bool = True


@dataclass(frozen=True)
class WaitingJob:
    """A submission without an instance."""

    id: UUID
    run_id: UUID
    replica_num: int
    job_num: int
    priority: int
    submitted_at: datetime
    requirements: Requirements
    limits: Limits = Limits()
    profile: Mapping[str, Any] = field(default_factory=dict)
    """The run's settings of `ProfileParams`."""
    fleet_id: UUID | None = None
    """Fixed by an earlier job of the run."""
    capacity_error: str | None = None
    last_tried_at: datetime | None = None
    """When it last learned that there is no capacity."""
    mounts: tuple[Mount, ...] = ()
    """Network volumes that it needs."""


@dataclass(frozen=True)
class FreeInstance:
    """An instance that is there or coming, and how much of it is taken."""

    id: UUID
    name: str
    fleet_id: UUID
    backend: str
    """The backend's own type."""
    status: InstanceStatus
    offer: InstanceOfferWithAvailability | None
    total_blocks: int
    busy_blocks: int
    busy_gpus: int = 0
    zone: str = ""
    num: int = 0
    """In its fleet."""
    hostname: str | None = None

    @property
    def free_blocks(self) -> int:
        return self.total_blocks - self.busy_blocks

    @property
    def is_local(self) -> bool:
        return self.backend == LOCAL

    @property
    def is_coming(self) -> bool:
        """What it is, and how much of it the job gets that it may be made for, is not settled yet."""
        return self.offer is None or self.status is InstanceStatus.PENDING

    @property
    def place(self) -> Place:
        return Place(self.backend, self.offer.region if self.offer is not None else "", self.zone)


@dataclass(frozen=True)
class GrowingFleet:
    """A fleet and how many more instances it may have."""

    id: UUID
    name: str
    room: int
    project_name: str = ""
    is_cluster: bool = False
    is_local: bool = False
    """Its only instance is the machine of the server, which has room for all nodes of a group."""
    backends: tuple[str, ...] | None = None
    own_backends: tuple[str, ...] | None = None
    """Those of `backends` by their own types."""
    project_id: UUID | None = None
    is_imported: bool = False
    """Of another project, which shares it."""
    spec: FleetSpec | None = None

    @property
    def called(self) -> FleetName:
        return FleetName(self.name, self.project_name, self.is_imported)


@dataclass(frozen=True)
class PlacementSnapshot:
    """The queue and the capacity of one project."""

    project_id: UUID
    jobs: tuple[WaitingJob, ...]
    instances: tuple[FreeInstance, ...]
    fleets: tuple[GrowingFleet, ...]
    volumes: Volumes = field(default_factory=dict)
    """All of the project, when a job of the queue needs some."""


@dataclass(frozen=True)
class Assign:
    """A write: this job takes so many blocks of this instance, and with them so many GPUs."""

    job: WaitingJob
    instance: FreeInstance
    blocks: int
    gpus: int = 0
    mounted: tuple[Mounted, ...] = ()


@dataclass(frozen=True)
class CreateFor:
    """A write: a new instance of this fleet, given to this job."""

    job: WaitingJob
    fleet: GrowingFleet
    terms: Combined
    mounted: tuple[Mounted, ...] = ()
    place: Place | None = None
    """Where it must be, for the sake of volumes."""


@dataclass(frozen=True)
class RefuseVolumes:
    """A write: the volumes that these jobs need will not be had, so they end."""

    job_ids: tuple[UUID, ...]
    error: str


@dataclass(frozen=True)
class Refuse:
    """A write: why there is nothing for these jobs."""

    job_ids: tuple[UUID, ...]
    error: str


Write = Assign | CreateFor | Refuse | RefuseVolumes

"""Instances: machines that run jobs, what they have, and what could be had."""

import enum
from typing import Any
from uuid import UUID

from pydantic import Field

from dstack.core.backends import BackendType, VastAIProfileOptions
from dstack.core.models import CoreModel, Timestamp
from dstack.core.resources import AcceleratorVendor, CPUArchitecture, ResourcesSpec

__all__ = [
    "BackendType",
    "Disk",
    "Gpu",
    "GpuDriverInfo",
    "HealthCheck",
    "HealthEvent",
    "HealthStatus",
    "Instance",
    "InstanceAvailability",
    "InstanceOffer",
    "InstanceOfferWithAvailability",
    "InstanceRuntime",
    "InstanceStatus",
    "InstanceTerminationReason",
    "InstanceType",
    "Requirements",
    "Resources",
]


class Gpu(CoreModel):
    """One GPU of an instance."""

    name: str
    memory_mib: int
    vendor: AcceleratorVendor | None = None


class Disk(CoreModel):
    """The disk of an instance."""

    size_mib: int


class Resources(CoreModel):
    """What an instance has."""

    cpus: int
    memory_mib: int
    gpus: list[Gpu]
    spot: bool
    disk: Disk = Field(default_factory=lambda: Disk(size_mib=102400))
    cpu_arch: CPUArchitecture | None = None
    description: str = ""


class InstanceType(CoreModel):
    """A kind of machine that a backend offers, by its name there."""

    name: str
    resources: Resources


class Requirements(CoreModel):
    """What an instance must have and cost at most to be considered for a job."""

    resources: ResourcesSpec
    max_price: float | None = None
    spot: bool | None = None
    """True: only spot, False: only on-demand, None: either."""
    reservation: str | None = None
    multinode: bool | None = None
    backend_options: list[VastAIProfileOptions] | None = None


class InstanceAvailability(str, enum.Enum):
    """Whether an offer can be had now."""

    UNKNOWN = "unknown"
    AVAILABLE = "available"
    NOT_AVAILABLE = "not_available"
    NO_QUOTA = "no_quota"
    NO_BALANCE = "no_balance"
    IDLE = "idle"
    BUSY = "busy"

    def is_available(self) -> bool:
        """Whether it is worth trying."""
        return self in (self.UNKNOWN, self.AVAILABLE, self.IDLE)


class InstanceRuntime(str, enum.Enum):
    """What a backend's instances give us: a whole machine, or just a container."""

    SHIM = "shim"
    RUNNER = "runner"


class InstanceOffer(CoreModel):
    """Something a backend could provide, and its price in dollars per hour."""

    backend: BackendType
    instance: InstanceType
    region: str
    price: float
    backend_data: dict[str, Any] = Field(default_factory=dict)


class InstanceOfferWithAvailability(InstanceOffer):
    """An offer and whether it can be had now: from a backend, or an instance that exists already."""

    availability: InstanceAvailability
    availability_zones: list[str] | None = None
    instance_runtime: InstanceRuntime = InstanceRuntime.SHIM
    blocks: int = 1
    """How many of its equal parts are offered."""
    total_blocks: int = 1


class InstanceStatus(str, enum.Enum):
    """Where an instance is in its life."""

    PENDING = "pending"
    PROVISIONING = "provisioning"
    IDLE = "idle"
    BUSY = "busy"
    TERMINATING = "terminating"
    TERMINATED = "terminated"

    def is_finished(self) -> bool:
        """Whether it never changes again."""
        return self is InstanceStatus.TERMINATED

    def is_active(self) -> bool:
        """Whether it is not gone."""
        return not self.is_finished()

    def is_available(self) -> bool:
        """Whether it could run a job, now or once it is free."""
        return self in (InstanceStatus.IDLE, InstanceStatus.BUSY)


class InstanceTerminationReason(str, enum.Enum):
    """Why an instance was given up."""

    TERMINATED_BY_USER = "terminated_by_user"
    IDLE_TIMEOUT = "idle_timeout"
    PROVISIONING_TIMEOUT = "provisioning_timeout"
    ERROR = "error"
    JOB_FINISHED = "job_finished"
    UNREACHABLE = "unreachable"
    NO_OFFERS = "no_offers"
    MASTER_FAILED = "master_failed"
    MAX_INSTANCES_LIMIT = "max_instances_limit"
    FLEET_SPEC_MISMATCH = "fleet_spec_mismatch"
    NO_BALANCE = "no_balance"


class HealthStatus(str, enum.Enum):
    """How a host is doing."""

    HEALTHY = "healthy"
    WARNING = "warning"
    FAILURE = "failure"


class HealthEvent(CoreModel):
    """One thing that is wrong with a host."""

    timestamp: Timestamp
    status: HealthStatus
    message: str


class HealthCheck(CoreModel):
    """What one check of a host found."""

    collected_at: Timestamp
    status: HealthStatus
    events: list[HealthEvent]


class GpuDriverInfo(CoreModel):
    """The GPU driver of a host."""

    vendor: AcceleratorVendor | None = None
    version: str


class Instance(CoreModel):
    """A machine of a project."""

    id: UUID
    project_name: str
    backend: BackendType | None = None
    instance_type: InstanceType | None = None
    name: str
    fleet_id: UUID | None = None
    fleet_name: str | None = None
    instance_num: int
    job_name: str | None = None
    hostname: str | None = None
    status: InstanceStatus
    unreachable: bool = False
    health_status: HealthStatus = HealthStatus.HEALTHY
    termination_reason: str | None = None
    termination_reason_message: str | None = None
    created: Timestamp
    finished_at: Timestamp | None = None
    region: str | None = None
    availability_zone: str | None = None
    price: float | None = None
    total_blocks: int | None = None
    busy_blocks: int = 0
    gpu_driver: GpuDriverInfo | None = None

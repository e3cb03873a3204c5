"""Gateways of a project."""

import enum
from uuid import UUID

from pydantic import Field

from dstack.core.backends import BackendType
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.models import CoreModel, Timestamp
from dstack.core.plans import ApplyAction


class GatewayStatus(str, enum.Enum):
    """Where a gateway is in its life."""

    SUBMITTED = "submitted"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    FAILED = "failed"

    def is_finished(self) -> bool:
        """Whether it never changes again by itself."""
        return self is GatewayStatus.FAILED


class GatewayReplicaStatus(str, enum.Enum):
    """Where one machine of a gateway is in its life."""

    SUBMITTED = "submitted"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    TERMINATING = "terminating"
    TERMINATED = "terminated"

    def is_finished(self) -> bool:
        """Whether it never changes again."""
        return self is GatewayReplicaStatus.TERMINATED


class GatewayReplica(CoreModel):
    """One machine of a gateway."""

    hostname: str | None = None
    replica_num: int
    backend: BackendType | None = None
    region: str | None = None
    created_at: Timestamp
    status: GatewayReplicaStatus
    status_message: str | None = None


class GatewaySpec(CoreModel):
    """What was asked for."""

    configuration: GatewayConfiguration
    configuration_path: str | None = None


class Gateway(CoreModel):
    """A gateway."""

    id: UUID
    name: str
    project_name: str
    configuration: GatewayConfiguration
    created_at: Timestamp
    status: GatewayStatus
    status_message: str | None = None
    hostname: str | None = None
    wildcard_domain: str | None = None
    default: bool
    replicas: list[GatewayReplica] = Field(default_factory=list)
    backend: BackendType | None = None
    region: str | None = None
    ip_address: str | None = None
    instance_id: str | None = None


class GatewayPlan(CoreModel):
    """What applying a gateway configuration would do."""

    project_name: str
    user: str
    spec: GatewaySpec
    effective_spec: GatewaySpec
    current_resource: Gateway | None = None
    action: ApplyAction

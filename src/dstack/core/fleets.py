"""Fleets of a project."""

import enum
from uuid import UUID

from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.instances import Instance, InstanceOfferWithAvailability
from dstack.core.models import CoreModel, Timestamp
from dstack.core.plans import ApplyAction


class FleetStatus(str, enum.Enum):
    """Where a fleet is in its life."""

    SUBMITTED = "submitted"
    ACTIVE = "active"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    FAILED = "failed"

    def is_finished(self) -> bool:
        """Whether it never changes again."""
        return self in (FleetStatus.TERMINATED, FleetStatus.FAILED)


class FleetSpec(CoreModel):
    """What was asked for."""

    configuration: FleetConfiguration
    configuration_path: str | None = None
    profile: Profile
    autocreated: bool = False


class Fleet(CoreModel):
    """A fleet and its instances."""

    id: UUID
    name: str
    project_name: str
    spec: FleetSpec
    created_at: Timestamp
    status: FleetStatus
    status_message: str | None = None
    instances: list[Instance]


class FleetPlan(CoreModel):
    """What applying a fleet configuration would do."""

    project_name: str
    user: str
    spec: FleetSpec
    effective_spec: FleetSpec | None = None
    current_resource: Fleet | None = None
    offers: list[InstanceOfferWithAvailability]
    total_offers: int
    max_offer_price: float | None = None
    action: ApplyAction | None = None

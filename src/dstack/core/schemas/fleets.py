"""`/api/fleets` and `/api/project/{project_name}/fleets`."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.fleets import Fleet, FleetSpec
from dstack.core.models import CoreModel, Timestamp


class ListFleetsRequest(CoreModel):
    """A page of the fleets of all projects of the caller."""

    project_name: str | None = None
    only_active: bool = False
    include_imported: bool = False
    prev_created_at: Timestamp | None = None
    prev_id: UUID | None = None
    limit: int = Field(default=100, ge=0, le=100)
    ascending: bool = False


class ListProjectFleetsRequest(CoreModel):
    """The fleets of a project."""

    include_imported: bool = False


class GetFleetRequest(CoreModel):
    """A fleet by name or id."""

    name: str | None = None
    id: UUID | None = None


class GetFleetPlanRequest(CoreModel):
    """What would applying this do?"""

    spec: FleetSpec


class ApplyFleetPlanInput(CoreModel):
    """What to apply, and what it was planned against."""

    spec: FleetSpec
    current_resource: Fleet | None = None


class ApplyFleetPlanRequest(CoreModel):
    """`force`: apply even if the fleet has changed since."""

    plan: ApplyFleetPlanInput
    force: bool


class DeleteFleetsRequest(CoreModel):
    """Fleets by name."""

    names: list[str]


class DeleteFleetInstancesRequest(CoreModel):
    """Instances of a fleet by number."""

    name: str
    instance_nums: list[int]

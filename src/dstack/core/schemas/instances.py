"""`/api/instances` and `/api/project/{project_name}/instances`."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.instances import HealthCheck
from dstack.core.models import CoreModel, Timestamp


class ListInstancesRequest(CoreModel):
    """A page of instances."""

    project_names: list[str] | None = None
    fleet_ids: list[UUID] | None = None
    only_active: bool = False
    include_imported: bool = False
    prev_created_at: Timestamp | None = None
    prev_id: UUID | None = None
    limit: int = Field(default=1000, ge=0, le=2**31 - 1)
    ascending: bool = False


class GetInstanceRequest(CoreModel):
    """An instance by id."""

    id: UUID


class GetInstanceHealthChecksRequest(CoreModel):
    """A page of the checks of an instance."""

    fleet_name: str
    instance_num: int
    after: Timestamp | None = None
    before: Timestamp | None = None
    limit: int | None = None


class GetInstanceHealthChecksResponse(CoreModel):
    """Checks of an instance, latest first."""

    health_checks: list[HealthCheck]

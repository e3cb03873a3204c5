"""`/api/volumes` and `/api/project/{project_name}/volumes`."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.configurations.volume import VolumeConfiguration
from dstack.core.models import CoreModel, Timestamp


class ListVolumesRequest(CoreModel):
    """A page of the volumes of all projects of the caller."""

    project_name: str | None = None
    only_active: bool = False
    prev_created_at: Timestamp | None = None
    prev_id: UUID | None = None
    limit: int = Field(default=100, ge=0, le=100)
    ascending: bool = False


class GetVolumeRequest(CoreModel):
    """A volume by name."""

    name: str


class CreateVolumeRequest(CoreModel):
    """A new volume."""

    configuration: VolumeConfiguration


class DeleteVolumesRequest(CoreModel):
    """Volumes by name."""

    names: list[str]

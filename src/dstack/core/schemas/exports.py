"""`/api/project/{project_name}/exports`."""

from __future__ import annotations

from pydantic import Field

from dstack.core.exports import Export
from dstack.core.models import CoreModel


class CreateExportRequest(CoreModel):
    """What to share, and with whom."""

    name: str
    is_global: bool = False
    importer_projects: list[str] = Field(default_factory=list)
    exported_fleets: list[str] = Field(default_factory=list)
    exported_gateways: list[str] = Field(default_factory=list)


class UpdateExportRequest(CoreModel):
    """What changes."""

    name: str
    set_global: bool = False
    unset_global: bool = False
    add_importer_projects: list[str] = Field(default_factory=list)
    remove_importer_projects: list[str] = Field(default_factory=list)
    add_exported_fleets: list[str] = Field(default_factory=list)
    remove_exported_fleets: list[str] = Field(default_factory=list)
    add_exported_gateways: list[str] = Field(default_factory=list)
    remove_exported_gateways: list[str] = Field(default_factory=list)


class DeleteExportRequest(CoreModel):
    """An export by name."""

    name: str


class ListExportsResponse(CoreModel):
    """The exports of a project."""

    exports: list[Export]
    warnings: list[str] = Field(default_factory=list)

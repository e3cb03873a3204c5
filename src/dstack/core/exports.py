"""Fleets and gateways shared between projects."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.models import CoreModel


class ExportImport(CoreModel):
    """A project that uses an export."""

    project_name: str


class ExportedFleet(CoreModel):
    """A shared fleet."""

    id: UUID
    name: str


class ExportedGateway(CoreModel):
    """A shared gateway."""

    id: UUID
    name: str


class Export(CoreModel):
    """What a project shares, and with whom."""

    id: UUID
    name: str
    is_global: bool = False
    imports: list[ExportImport]
    exported_fleets: list[ExportedFleet]
    exported_gateways: list[ExportedGateway] = Field(default_factory=list)


class ImportExportedFleet(CoreModel):
    """A fleet shared by another project."""

    id: UUID
    name: str


class ImportExportedGateway(CoreModel):
    """A gateway shared by another project."""

    id: UUID
    name: str


class ImportExport(CoreModel):
    """An export as the importing project sees it."""

    id: UUID
    name: str
    project_name: str
    exported_fleets: list[ImportExportedFleet]
    exported_gateways: list[ImportExportedGateway] = Field(default_factory=list)


class Import(CoreModel):
    """What a project uses of another one."""

    id: UUID
    export: ImportExport

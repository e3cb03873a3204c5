"""`/api/project/{project_name}/imports`."""

from __future__ import annotations

from pydantic import Field

from dstack.core.exports import Import
from dstack.core.models import CoreModel


class DeleteImportRequest(CoreModel):
    """An export of another project that is no longer used."""

    export_name: str
    export_project_name: str


class ListImportsResponse(CoreModel):
    """The imports of a project."""

    imports: list[Import]
    warnings: list[str] = Field(default_factory=list)

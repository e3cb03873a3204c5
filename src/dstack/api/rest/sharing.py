"""Fleets and gateways shared between projects: `/api/project/{project}/exports/*` and `imports/*`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class ExportsApi:
    """Calls about what a project shares; an export is the API's JSON object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, project: str) -> Documents:
        """The exports of a project."""
        return _listed(self._connection.post(f"/api/project/{project}/exports/list"), "exports")

    def create(
        self,
        project: str,
        name: str,
        *,
        is_global: bool = False,
        importer_projects: Sequence[str] = (),
        exported_fleets: Sequence[str] = (),
        exported_gateways: Sequence[str] = (),
    ) -> Document:
        """Shares fleets and gateways with other projects, or with all. Raises `ResourceExists`."""
        body = {
            "name": name,
            "is_global": is_global,
            "importer_projects": [*importer_projects],
            "exported_fleets": [*exported_fleets],
            "exported_gateways": [*exported_gateways],
        }
        export: Document = self._connection.post(f"/api/project/{project}/exports/create", body)
        return export

    def update(self, project: str, name: str, **changes: Any) -> Document:
        """Changes an export; the changes are the fields of the call, such as `add_exported_fleets`."""
        export: Document = self._connection.post(
            f"/api/project/{project}/exports/update", {"name": name, **changes}
        )
        return export

    def delete(self, project: str, name: str) -> None:
        """Ends an export. Raises `ResourceNotExists`."""
        self._connection.post(f"/api/project/{project}/exports/delete", {"name": name})


class ImportsApi:
    """Calls about what a project uses of others; an import is the API's JSON object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, project: str) -> Documents:
        """The imports of a project."""
        return _listed(self._connection.post(f"/api/project/{project}/imports/list"), "imports")

    def delete(self, project: str, export_project: str, export_name: str) -> None:
        """Gives up what another project shares. Raises `ResourceNotExists`."""
        body = {"export_name": export_name, "export_project_name": export_project}
        self._connection.post(f"/api/project/{project}/imports/delete", body)


def _listed(answer: Any, key: str) -> Documents:
    """Servers before 0.22 answer with the bare list."""
    listed: Documents = answer[key] if isinstance(answer, dict) else answer
    return listed

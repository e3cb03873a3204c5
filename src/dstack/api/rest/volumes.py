"""Volumes: `/api/volumes/*` and `/api/project/{project}/volumes/*`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class VolumesApi:
    """Calls about volumes; a volume is the API's JSON object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, project: str) -> Documents:
        """The volumes of a project, the newest first."""
        volumes: Documents = self._connection.post(f"/api/project/{project}/volumes/list")
        return volumes

    def list_page(self, **fields: Any) -> Documents:
        """A page of the volumes of all the user's projects; the fields are those of the call."""
        volumes: Documents = self._connection.post("/api/volumes/list", fields)
        return volumes

    def get(self, project: str, name: str) -> Document:
        """The volume of that name. Raises `ResourceNotExists`."""
        volume: Document = self._connection.post(f"/api/project/{project}/volumes/get", {"name": name})
        return volume

    def create(self, project: str, configuration: Document) -> Document:
        """Submits a volume, new or registered by its `volume_id`. Raises `ResourceExists`."""
        body = {"configuration": configuration}
        volume: Document = self._connection.post(f"/api/project/{project}/volumes/create", body)
        return volume

    def delete(self, project: str, names: Sequence[str]) -> None:
        """Removes volumes; refused while one is attached."""
        self._connection.post(f"/api/project/{project}/volumes/delete", {"names": [*names]})

"""Fleets: `/api/project/{project}/fleets/*`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class FleetsApi:
    """Calls about fleets; a fleet is the API's JSON object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, project: str) -> Documents:
        """The fleets of a project and those imported into it."""
        fleets: Documents = self._connection.post(
            f"/api/project/{project}/fleets/list", {"include_imported": True}
        )
        return fleets

    def list_page(self, **fields: Any) -> Documents:
        """A page of the fleets of all the user's projects; the fields are those of the call."""
        fleets: Documents = self._connection.post("/api/fleets/list", fields)
        return fleets

    def get(self, project: str, *, name: str | None = None, fleet_id: str | None = None) -> Document:
        """The fleet of that name or id. Raises `ResourceNotExists`."""
        body = {"name": name} if fleet_id is None else {"name": name, "id": fleet_id}
        fleet: Document = self._connection.post(f"/api/project/{project}/fleets/get", body)
        return fleet

    def get_plan(self, project: str, spec: Document) -> Document:
        """What applying the spec would do."""
        plan: Document = self._connection.post(f"/api/project/{project}/fleets/get_plan", {"spec": spec})
        return plan

    def apply(
        self, project: str, spec: Document, current_resource: Document | None, *, force: bool = False
    ) -> Document:
        """Creates or updates a fleet. `current_resource` is the fleet as the plan showed it."""
        plan = {"spec": spec, "current_resource": current_resource}
        fleet: Document = self._connection.post(
            f"/api/project/{project}/fleets/apply", {"plan": plan, "force": force}
        )
        return fleet

    def delete(self, project: str, names: Sequence[str]) -> None:
        """Ends the fleets and their instances."""
        self._connection.post(f"/api/project/{project}/fleets/delete", {"names": [*names]})

    def delete_instances(self, project: str, name: str, instance_nums: Sequence[int]) -> None:
        """Ends some instances of a fleet."""
        body = {"name": name, "instance_nums": [*instance_nums]}
        self._connection.post(f"/api/project/{project}/fleets/delete_instances", body)

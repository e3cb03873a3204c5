"""Instances: `/api/instances/*` and `/api/project/{project}/instances/*`."""

from __future__ import annotations

from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class InstancesApi:
    """Calls about instances; an instance is the API's JSON object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, **fields: Any) -> Documents:
        """A page of the instances of the user's projects; the fields are those of the call."""
        instances: Documents = self._connection.post("/api/instances/list", fields)
        return instances

    def get(self, project: str, instance_id: str) -> Document:
        """The instance of that id. Raises `ResourceNotExists`."""
        instance: Document = self._connection.post(f"/api/project/{project}/instances/get", {"id": instance_id})
        return instance

    def list_health_checks(self, project: str, fleet_name: str, instance_num: int, **fields: Any) -> Documents:
        """What the hardware monitor of the host found, the latest first."""
        body = {"fleet_name": fleet_name, "instance_num": instance_num, **fields}
        answer = self._connection.post(f"/api/project/{project}/instances/get_instance_health_checks", body)
        checks: Documents = answer["health_checks"]
        return checks

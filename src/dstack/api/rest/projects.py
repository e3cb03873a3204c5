"""Projects, users, secrets and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class ProjectsApi:
    """`/api/projects/*`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: str) -> Document:
        """The project of that name. Raises `ProjectNotFound`, `Forbidden`."""
        project: Document = self._connection.post(f"/api/projects/{name}/get")
        return project


class UsersApi:
    """`/api/users/*`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_my_user(self) -> Document:
        """The user whose token is used."""
        user: Document = self._connection.post("/api/users/get_my_user")
        return user


class SecretsApi:
    """`/api/project/{project}/secrets/*`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, project: str) -> Documents:
        """The secrets of a project, without their values."""
        secrets: Documents = self._connection.post(f"/api/project/{project}/secrets/list")
        return secrets

    def get(self, project: str, name: str) -> Document:
        """A secret with its value. Raises `ResourceNotExists`."""
        secret: Document = self._connection.post(f"/api/project/{project}/secrets/get", {"name": name})
        return secret

    def set(self, project: str, name: str, value: str) -> Document:
        """Creates or overwrites a secret."""
        body = {"name": name, "value": value}
        secret: Document = self._connection.post(f"/api/project/{project}/secrets/create_or_update", body)
        return secret

    def delete(self, project: str, names: Sequence[str]) -> None:
        """Removes secrets. Raises `ResourceNotExists`."""
        self._connection.post(f"/api/project/{project}/secrets/delete", {"secrets_names": [*names]})


class EventsApi:
    """`/api/events/*`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, filters: Mapping[str, Any]) -> Documents:
        """Events that match; the filters are the fields of the call."""
        body: Document = dict.fromkeys(_EVENT_FILTERS) | {"limit": 100, "ascending": False} | dict(filters)
        events: Documents = self._connection.post("/api/events/list", body)
        return events


_EVENT_FILTERS = (
    "target_projects",
    "target_users",
    "target_fleets",
    "target_instances",
    "target_runs",
    "target_jobs",
    "target_volumes",
    "target_gateways",
    "target_secrets",
    "within_projects",
    "within_fleets",
    "within_runs",
    "include_target_types",
    "actors",
    "prev_recorded_at",
    "prev_id",
)

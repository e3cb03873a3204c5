"""Projects, their secrets, events and templates; what the server is."""

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

    def list(self, **fields: Any) -> Documents:
        """A page of the projects that the user may see; the fields are those of the call."""
        projects: Documents = self._connection.post("/api/projects/list", fields or None)
        return projects

    def list_without_fleets(self) -> Documents:
        """The user's projects in which nothing could run yet."""
        projects: Documents = self._connection.post("/api/projects/list_only_no_fleets")
        return projects

    def create(self, name: str, *, is_public: bool = False, templates_repo: str | None = None) -> Document:
        """A new project of the user. Raises `ResourceExists`."""
        body = {"project_name": name, "is_public": is_public, "templates_repo": templates_repo}
        project: Document = self._connection.post("/api/projects/create", body)
        return project

    def update(self, name: str, **changes: Any) -> Document:
        """Changes `is_public` or `templates_repo`."""
        project: Document = self._connection.post(f"/api/projects/{name}/update", changes)
        return project

    def delete(self, names: Sequence[str]) -> None:
        """Removes projects; refused while something runs in one."""
        self._connection.post("/api/projects/delete", {"projects_names": [*names]})

    def set_members(self, name: str, roles: Mapping[str, str]) -> Document:
        """Makes these all the members: user name to `admin`, `manager` or `user`."""
        return self._change_members(name, "set_members", {"members": _members(roles)})

    def add_members(self, name: str, roles: Mapping[str, str]) -> Document:
        """Adds members, or gives present ones other roles."""
        return self._change_members(name, "add_members", {"members": _members(roles)})

    def remove_members(self, name: str, usernames: Sequence[str]) -> Document:
        """Removes members."""
        return self._change_members(name, "remove_members", {"usernames": [*usernames]})

    def _change_members(self, name: str, verb: str, body: Document) -> Document:
        project: Document = self._connection.post(f"/api/projects/{name}/{verb}", body)
        return project


def _members(roles: Mapping[str, str]) -> Documents:
    return [{"username": username, "project_role": role} for username, role in roles.items()]


class TemplatesApi:
    """`/api/project/{project}/templates/*`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, project: str) -> Documents:
        """Of the project's repository of templates, or else of the server's."""
        templates: Documents = self._connection.post(f"/api/project/{project}/templates/list")
        return templates


class ServerApi:
    """`/api/server/*`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_info(self) -> Document:
        """`server_version`, null for a development version. Needs no token."""
        info: Document = self._connection.post("/api/server/get_info")
        return info

    def is_healthy(self) -> bool:
        """Whether the server answers that it is running. Needs no token."""
        return bool(self._connection.get("/healthcheck")["status"] == "running")


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

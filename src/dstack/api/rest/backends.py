"""Backends of projects: `/api/backends/*` and `/api/project/{project}/backends/*`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]


class BackendsApi:
    """Calls about backends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list_types(self) -> list[str]:
        """The types that the server has."""
        types: list[str] = self._connection.post("/api/backends/list_types")
        return types

    def create(self, project: str, config: Document) -> Document:
        """A new backend with its credentials. Raises `ResourceExists`, `InvalidCredentials`."""
        created: Document = self._connection.post(f"/api/project/{project}/backends/create", config)
        return created

    def update(self, project: str, config: Document) -> Document:
        """Replaces the configuration of a backend."""
        updated: Document = self._connection.post(f"/api/project/{project}/backends/update", config)
        return updated

    def delete(self, project: str, names: Sequence[str]) -> None:
        """Removes backends; refused while instances of one exist."""
        self._connection.post(f"/api/project/{project}/backends/delete", {"backends_names": [*names]})

    def get_config(self, project: str, backend: str) -> Document:
        """The configuration of a backend, with its credentials."""
        config: Document = self._connection.post(f"/api/project/{project}/backends/{backend}/config_info")
        return config

    def create_yaml(self, project: str, config_yaml: str) -> None:
        """As `create`, from the YAML of the server's configuration file."""
        self._connection.post(f"/api/project/{project}/backends/create_yaml", {"config_yaml": config_yaml})

    def update_yaml(self, project: str, config_yaml: str) -> None:
        """As `update`, from YAML."""
        self._connection.post(f"/api/project/{project}/backends/update_yaml", {"config_yaml": config_yaml})

    def get_yaml(self, project: str, backend: str) -> Document:
        """`name` and `config_yaml` of a backend."""
        answer: Document = self._connection.post(f"/api/project/{project}/backends/{backend}/get_yaml")
        return answer

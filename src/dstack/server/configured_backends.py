"""The backends that the projects have configured, ready for use.

They are kept and dropped when a wake-up `backends` says that a configuration changed. A backend whose
configuration is still the same stays the same object, with whatever connections it holds.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from uuid import UUID

from dstack.backends import registry
from dstack.backends.base import Backend
from dstack.backends.registry import BackendContext
from dstack.core.errors import BackendNotAvailable, DstackError
from dstack.server.db.engine import Database
from dstack.server.db.queries import projects
from dstack.server.db.tables import BackendRow
from dstack.server.encryption import Encryption

logger = logging.getLogger(__name__)

TOPIC = "backends"
"""The wake-up that whoever changes a row of `backends` sends."""


@dataclass(frozen=True)
class _Made:
    """A backend and the row's columns that it was made from."""

    config: str
    auth: str
    backend: Backend


class ConfiguredBackends:
    """Looks up backends by project. `close()` ends the listening for changes."""

    def __init__(self, database: Database, encryption: Encryption, context: BackendContext) -> None:
        self._database = database
        self._encryption = encryption
        self._context = context
        self._rows: dict[UUID, list[BackendRow]] = {}
        self._made: dict[UUID, _Made] = {}
        self._generation = 0
        self._end_listening = database.wakeups.listen(self._on_wakeup)

    def close(self) -> None:
        self._end_listening()

    async def get(self, project_id: UUID, type: str) -> Backend:
        """Raises BackendNotAvailable when the project has no such backend, or InvalidRequest when its settings
        make no sense."""
        for row in await self._rows_of(project_id):
            if row.type == type:
                return self._make(row)
        raise BackendNotAvailable(f"The project has no backend {type!r}")

    async def list_of_project(self, project_id: UUID) -> list[Backend]:
        """All that can be used, by type. One that cannot is told in the log: it must not hold up the others."""
        found: list[Backend] = []
        for row in await self._rows_of(project_id):
            try:
                found.append(self._make(row))
            except DstackError as error:
                logger.warning("Backend %s of project %s cannot be used: %s", row.type, project_id, error)
        return found

    async def _rows_of(self, project_id: UUID) -> list[BackendRow]:
        rows = self._rows.get(project_id)
        if rows is not None:
            return rows
        generation = self._generation
        async with self._database.session() as session:
            rows = (await projects.list_backends(session, [project_id]))[project_id]
        if generation == self._generation:
            self._rows[project_id] = rows
        return rows

    def _make(self, row: BackendRow) -> Backend:
        made = self._made.get(row.id)
        if made is None or (made.config, made.auth) != (row.config, row.auth):
            settings = settings_of(row, self._encryption)
            made = _Made(row.config, row.auth, registry.create(row.type, settings, self._context))
            self._made[row.id] = made
        return made.backend

    def _on_wakeup(self, name: str) -> None:
        if name == TOPIC:
            self._generation += 1
            self._rows.clear()


def settings_of(row: BackendRow, encryption: Encryption) -> dict[str, object]:
    """What a backend is created with: its configuration and, under `creds`, its credentials."""
    settings: dict[str, object] = json.loads(row.config)
    settings.pop("type", None)
    creds = json.loads(encryption.decrypt(row.auth, f"backends.auth:{row.id}"))
    return settings if creds is None else {**settings, "creds": creds}

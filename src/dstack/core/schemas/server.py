"""`/api/server`."""

from __future__ import annotations

from dstack.core.models import CoreModel


class ServerInfo(CoreModel):
    """The version of the server."""

    server_version: str | None = None

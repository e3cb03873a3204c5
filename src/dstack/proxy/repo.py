"""Where requests go: services and their replicas."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Service:
    """A running service as the proxy sees it. Replaced as a whole when anything in it changes."""

    id: str
    """Of the run: the key of its stats."""
    project: str
    run: str
    auth: bool
    strip_prefix: bool
    replicas: tuple[str, ...]
    """Addresses of the replicas that take traffic: `host:port` or `unix:/path`."""


class ProxyRepo(Protocol):
    def find_service(self, project: str, run: str) -> Service | Awaitable[Service | None] | None:
        """None: no such service, or none that takes traffic here. At once where known, else to be awaited."""
        ...

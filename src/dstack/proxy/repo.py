"""Where requests go: services and their replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from dstack.proxy.balancing import Policy
from dstack.proxy.limits import RateLimit


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
    wakes: bool = False
    """Without a replica, a request has one started."""
    rate_limits: tuple[RateLimit, ...] = ()
    is_cors_open: bool = False
    """Browsers may use it from any site."""
    balancing: Policy = None
    counts_tokens: bool = False
    """Its answers may tell of tokens, as those of models do."""


class ProxyRepo(Protocol):
    def find_service(self, project: str, run: str) -> Service | Awaitable[Service | None] | None:
        """None: no such service, or none that takes traffic here. At once where known, else to be awaited."""
        ...


class WatchedRepo(ProxyRepo, Protocol):
    """One that tells of changes, so that they can be waited for."""

    def next_change(self) -> asyncio.Future[None]:
        """Done at the next change of any service; never cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """What clients call by `name`, and the service behind it."""

    name: str
    created: int
    """When, in seconds since 1970."""
    service: Service
    prefix: str | None = None
    """Of the replicas' OpenAI API, such as `/v1`; None: they speak the protocol of TGI."""
    chat_template: str | None = None
    """TGI: Jinja template of the prompt; None: the replica knows its own."""
    eos_token: str | None = None
    """TGI: where generating stops; None: the replica knows its own."""
    host: bytes | None = None
    """What replicas get as `Host`; None: the client's."""


class ModelRepo(Protocol):
    def list_models(self, project: str) -> tuple[Model, ...] | Awaitable[tuple[Model, ...]]:
        """Those that can be used now, each name once. At once where known, else to be awaited."""
        ...

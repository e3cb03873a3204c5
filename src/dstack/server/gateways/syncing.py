"""Has a gateway publish what the database says, and nothing else: the server's state wins."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from dstack.core.errors import DstackError
from dstack.server.gateways.client import GatewayClient, GatewayRefused, Registered
from dstack.server.gateways.wanted import Entrypoint, WantedService
from dstack.server.gateways.ways import Forwards, ProjectKeys, way_to
from dstack.server.hosts.replicas import parse_remote

logger = logging.getLogger(__name__)

REGISTER_TRIES = 3
"""So many refusals in a row are believed."""
AT_ONCE = 8
"""Services that are changed at the same time."""


class GatewaySync:
    """Of one connection. What was registered over it is remembered, so that only changes are sent."""

    def __init__(self, name: str, client: GatewayClient, keys: ProjectKeys, forwards: Forwards) -> None:
        self._name = name
        self._client = client
        self._keys = keys
        self._forwards = forwards
        self._sent: dict[UUID, Mapping[str, Any]] = {}
        self._entrypoints: set[Entrypoint] = set()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._failed: Counter[UUID] = Counter()
        self.failures: dict[UUID, str] = {}
        """Why services are not published, though it was tried a few times, by run."""

    async def sync(self, wanted: Sequence[WantedService]) -> None:
        """Raises Unreachable when the gateway cannot be talked to; what it refuses is in `failures`."""
        listed = {(one.project, one.run): one for one in await self._client.list_services()}
        by_name = {service.name: service for service in wanted}
        for name, known in listed.items():
            if name not in by_name or known.id != str(by_name[name].run_id):
                await self._client.unregister(known.project, known.run)
        await asyncio.gather(*(self._sync_service(service, listed.get(service.name)) for service in wanted))
        await self._forwards.close_all_but({job_id for service in wanted for job_id in service.replicas})
        active = {service.run_id for service in wanted}
        self._sent = {run_id: body for run_id, body in self._sent.items() if run_id in active}
        self._forget(self._failed.keys() - active)

    async def _sync_service(self, service: WantedService, listed: Registered | None) -> None:
        known = listed if listed is not None and listed.id == str(service.run_id) else None
        async with self._at_once:
            try:
                await self._register(service, is_known=known is not None)
                self._forget({service.run_id})
            except GatewayRefused as error:
                logger.warning("gateway %s: %s: %s", self._name, service.run, error)
                if known is None:
                    self._count_failure(service.run_id, str(error))
                    return
            await self._register_entrypoint(service.entrypoint)
            there = known.replicas if known is not None else frozenset()
            for job_id, address in service.replicas.items():
                await self._ensure_replica(service, job_id, address, is_there=job_id in there)
            for job_id in there - service.replicas.keys():
                await self._drop_replica(service, job_id)

    def _count_failure(self, run_id: UUID, why: str) -> None:
        self._failed[run_id] += 1
        if self._failed[run_id] >= REGISTER_TRIES:
            self.failures[run_id] = why

    def _forget(self, run_ids: Iterable[UUID]) -> None:
        for run_id in list(run_ids):
            self._failed.pop(run_id, None)
            self.failures.pop(run_id, None)

    async def _register(self, service: WantedService, *, is_known: bool) -> None:
        if is_known and self._sent.get(service.run_id) == service.body:
            return
        key = await self._keys.private(service.project_id)
        await self._client.register(service.project, {**service.body, "ssh_private_key": key})
        self._sent[service.run_id] = service.body

    async def _register_entrypoint(self, entrypoint: Entrypoint | None) -> None:
        if entrypoint is None or entrypoint in self._entrypoints:
            return
        try:
            await self._client.register_entrypoint(entrypoint.project, entrypoint.domain, https=entrypoint.https)
            self._entrypoints.add(entrypoint)
        except GatewayRefused as error:
            logger.warning("gateway %s: models of %s: %s", self._name, entrypoint.project, error)

    async def _ensure_replica(self, service: WantedService, job_id: str, address: str, *, is_there: bool) -> None:
        """What fails is tried again at the next look, and is nothing to the others.

        A replica that is registered may still need its forward anew: those of an earlier connection ended with it.
        """
        if is_there and not _is_local(address):
            return
        try:
            way = await way_to(service.project_id, job_id, address, self._keys, self._forwards)
        except DstackError as error:
            logger.warning("gateway %s: no way to a replica of %s: %s", self._name, service.run, error)
            return
        if is_there:
            return
        try:
            await self._client.register_replica(service.project, service.run, {"job_id": job_id, **way})
        except GatewayRefused as error:
            logger.warning("gateway %s: a replica of %s: %s", self._name, service.run, error)

    async def _drop_replica(self, service: WantedService, job_id: str) -> None:
        try:
            await self._client.unregister_replica(service.project, service.run, job_id)
        except GatewayRefused as error:
            logger.warning("gateway %s: a replica of %s: %s", self._name, service.run, error)


def _is_local(address: str) -> bool:
    return parse_remote(address) is None

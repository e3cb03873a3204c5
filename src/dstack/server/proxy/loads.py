"""Tells the database what this process has seen of the requests to services, for scaling and draining.

A request costs nothing here: once a second the counts are looked at, and written where they have changed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from dstack.core.errors import DstackError
from dstack.proxy.pool import Pool
from dstack.proxy.stats import ServiceStats
from dstack.server import clock
from dstack.server.db.engine import Database
from dstack.server.db.queries import loads as queries
from dstack.server.proxy.repo import ROUTES

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
WRITE_AT_LEAST_EVERY = timedelta(seconds=5)
"""Well below the time after which a row counts as one of a server that is gone."""
ATTENTIVE_FOR = timedelta(seconds=10)
"""After a change of routes every change is written at once: a replica may be waiting for its last requests."""
LIST_EVERY = timedelta(seconds=15)
PURGE_EVERY = timedelta(minutes=5)


class LoadReporter:
    """`start`, `stop`; `wake(service_id)` has the service's row written at once, and its run looked at."""

    def __init__(self, database: Database, stats: ServiceStats, pool: Pool, now: Callable[[], datetime]) -> None:
        self._database = database
        self._stats = stats
        self._pool = pool
        self._now = now
        self._server = uuid.uuid4()
        self._since = now()
        self._written: dict[str, tuple[datetime, Mapping[str, Any]]] = {}
        self._scaling: Collection[str] = ()
        self.names: Mapping[str, tuple[str, str]] = {}
        """Project and run of every active service, by its id."""
        self._listed_at = self._purged_at = self._changed_at = self._since - PURGE_EVERY
        self._urgent: set[str] = set()
        self._is_urgent = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._deaf: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Needs a running event loop."""
        self._deaf = self._database.wakeups.listen(self._hear)
        self._loop = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        self._deaf()
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    def wake(self, service_id: str) -> None:
        self._urgent.add(service_id)
        self._is_urgent.set()

    def _hear(self, name: str) -> None:
        if name == ROUTES:
            self._changed_at = self._now()
            self._listed_at = self._since - PURGE_EVERY

    async def _run(self) -> None:
        while True:
            try:
                await self.report()
            except DstackError as error:
                logger.warning("loads of services: %s", error.detail)
            except Exception:
                logger.exception("loads of services: a round failed")
            await clock.happens_within(self._is_urgent, LOOK_EVERY_S)

    async def report(self) -> None:
        """One look at all counts."""
        now = self._now()
        self._is_urgent.clear()
        urgent, self._urgent = self._urgent, set()
        if now >= self._listed_at + LIST_EVERY:
            await self._list(now)
        self._stats.look()
        busy = self._pool.busy()
        due = {}
        for id in {*self._stats.services(), *self._scaling}:
            if id in urgent or self._may_be_due(id, now):
                replicas = {address: count for (service, address), count in busy.items() if service == id}
                row = self._row(id, replicas)
                if id in urgent or self._is_due(id, row, now):
                    due[id] = row
        if not due:
            return
        async with self._database.transaction() as session:
            own = {"server": self._server, "since": self._since, "written_at": now}
            await queries.write(session, [{"run_id": UUID(id), **own, **row} for id, row in due.items()])
            if now >= self._purged_at + PURGE_EVERY:
                await queries.purge(session, now)
                self._purged_at = now
        changed = {id for id, row in due.items() if id not in self._written or self._written[id][1] != row}
        self._written.update({id: (now, row) for id, row in due.items()})
        self._database.wakeups.publish(f"run:{id}" for id in urgent | (changed & set(self._scaling)))

    def _row(self, id: str, replicas: Mapping[str, int]) -> dict[str, Any]:
        windows = self._stats.windows(id)
        requests = {f"requests_{seconds}": seen.requests for seconds, seen in windows.items()}
        return {
            **requests,
            "in_flight": self._stats.in_flight(id),
            "replicas": json.dumps(replicas),
            "windows": json.dumps({seconds: seen.dump() for seconds, seen in windows.items()}),
        }

    def _may_be_due(self, id: str, now: datetime) -> bool:
        """Known without adding up: a service that does not scale is written every few seconds only."""
        return id in self._scaling or self._is_late(id, now) or now < self._changed_at + ATTENTIVE_FOR

    def _is_late(self, id: str, now: datetime) -> bool:
        return id not in self._written or now >= self._written[id][0] + WRITE_AT_LEAST_EVERY

    def _is_due(self, id: str, row: Mapping[str, Any], now: datetime) -> bool:
        before = self._written[id][1] if id in self._written else None
        if row != before:
            return True
        return self._is_late(id, now) and (id in self._scaling or bool(row["in_flight"]))

    async def _list(self, now: datetime) -> None:
        """Which services there are; the others are forgotten."""
        async with self._database.session() as session:
            services = await queries.list_services(session)
        active = {str(service.id) for service in services}
        self.names = {str(service.id): (service.project, service.run) for service in services}
        self._scaling = {str(service.id) for service in services if service.scales}
        self._stats.forget_all_but(active)
        self._written = {id: known for id, known in self._written.items() if id in active}
        self._listed_at = now

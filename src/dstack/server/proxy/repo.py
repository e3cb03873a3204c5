"""Services and their replicas, from the database.

What was read stays in memory until the wake-up `routes` says that something about services changed: a request
costs a dictionary look-up, and a change counts from the next request on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from dstack.core.jobs import JobStatus
from dstack.core.runs import RunStatus
from dstack.proxy.limits import RateLimit
from dstack.proxy.repo import Service
from dstack.server.db.engine import Database
from dstack.server.db.tables import JobRow, ProjectRow, RunRow
from dstack.server.planning.replicas import groups_of

ROUTES = "routes"
"""The wake-up that empties the cache."""
MAX_CACHED_ROUTES = 10_000

_Key = tuple[str, str]


class ServerProxyRepo:
    """A `ProxyRepo`. `close()` ends the listening for changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._services: dict[_Key, Service | None] = {}
        self._loading: dict[_Key, asyncio.Task[Service | None]] = {}
        self._next_change: asyncio.Future[None] | None = None
        self._end_listening = database.wakeups.listen(self._on_wakeup)

    def close(self) -> None:
        self._end_listening()
        self._forget()

    def find_service(self, project: str, run: str) -> Service | Awaitable[Service | None] | None:
        key = (project, run)
        if key in self._services:
            return self._services[key]
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.get_running_loop().create_task(self._load(key))
        return asyncio.shield(loading)

    def next_change(self) -> asyncio.Future[None]:
        if self._next_change is None:
            self._next_change = asyncio.get_running_loop().create_future()
        return self._next_change

    def _on_wakeup(self, name: str) -> None:
        if name != ROUTES:
            return
        self._forget()
        change, self._next_change = self._next_change, None
        if change is not None:
            change.set_result(None)

    def _forget(self) -> None:
        self._services.clear()
        self._loading.clear()  # who waits gets what was read; who comes now has it read again

    async def _load(self, key: _Key) -> Service | None:
        task = asyncio.current_task()
        try:
            service = await self._read(*key)
            if self._loading.get(key) is task:
                if len(self._services) >= MAX_CACHED_ROUTES:
                    self._services.clear()
                self._services[key] = service
            return service
        finally:
            if self._loading.get(key) is task:
                del self._loading[key]

    async def _read(self, project: str, run: str) -> Service | None:
        newest = (
            select(RunRow.id, RunRow.run_spec, RunRow.service_spec, RunRow.status, RunRow.stop_requested)
            .join(ProjectRow, ProjectRow.id == RunRow.project_id)
            .where(ProjectRow.name == project, ProjectRow.deleted.is_(False))
            .where(RunRow.run_name == run, RunRow.deleted.is_(False), RunRow.finished_at.is_(None))
            .order_by(RunRow.submitted_at.desc())
            .limit(1)
        )
        async with self._database.session() as session:
            row = (await session.execute(newest)).one_or_none()
            if row is None or row.service_spec is None or not _is_served_here(row.service_spec):
                return None
            replicas = await session.execute(
                select(JobRow.service_address, JobRow.healthy)
                .where(JobRow.run_id == row.id, JobRow.status == JobStatus.RUNNING.value)
                .where(JobRow.registered.is_(True), JobRow.service_address.is_not(None))
                .order_by(JobRow.replica_num)
            )
            addresses = _preferred([(address, healthy) for address, healthy in replicas if address is not None])
        spec = json.loads(row.run_spec)
        configuration = spec.get("configuration", {})
        model = configuration.get("model") or {}
        is_ending = row.stop_requested is not None or row.status == RunStatus.TERMINATING.value
        return Service(
            id=str(row.id),
            project=project,
            run=run,
            auth=configuration.get("auth", True),
            strip_prefix=configuration.get("strip_prefix", True),
            replicas=addresses,
            wakes=not is_ending and any(group.low == 0 and group.scaling for group in groups_of(spec)),
            rate_limits=tuple(_rate_limit(limit) for limit in configuration.get("rate_limits") or ()),
            is_cors_open=model.get("format") == "openai",
        )


def _rate_limit(limit: Mapping[str, Any]) -> RateLimit:
    header: str | None = limit["key"].get("header")
    return RateLimit(
        prefix=limit["prefix"].encode(),
        header=None if header is None else header.lower().encode(),
        rps=limit["rps"],
        burst=limit["burst"],
    )


def _preferred(replicas: Sequence[tuple[str, bool]]) -> tuple[str, ...]:
    """Those whose probes succeed; all of them where that holds for none (better B6)."""
    healthy = tuple(address for address, is_healthy in replicas if is_healthy)
    return healthy or tuple(address for address, _ in replicas)


def _is_served_here(service_spec: str) -> bool:
    """A service on a gateway has an absolute URL; it isn't served under the server's own paths."""
    return str(json.loads(service_spec)["url"]).startswith("/")

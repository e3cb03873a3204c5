"""Services and their replicas, from the database.

What was read stays in memory until the wake-up `routes` says that something about services changed: a request
costs a dictionary look-up, and a change counts from the next request on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import Unpack

from dstack.core.jobs import JobStatus
from dstack.core.runs import RunStatus
from dstack.proxy.balancing import ByPrefix, BySession, LeastRequests, Policy
from dstack.proxy.limits import RateLimit
from dstack.proxy.repo import Model, Service
from dstack.server.db.engine import Database
from dstack.server.db.tables import JobRow, ProjectRow, RunRow
from dstack.server.planning.replicas import groups_of
from dstack.server.proxy.remembered import Remembered

ROUTES = "routes"
"""The wake-up that empties the cache."""


class ServerProxyRepo:
    """A `ProxyRepo` and a `ModelRepo`. `close()` ends the listening for changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._services: Remembered[tuple[str, str], Service | None] = Remembered(self._read_service)
        self._models: Remembered[str, tuple[Model, ...]] = Remembered(self._read_models)
        self._next_change: asyncio.Future[None] | None = None
        self._end_listening = database.wakeups.listen(self._on_wakeup)

    def close(self) -> None:
        self._end_listening()
        self._forget()

    def find_service(self, project: str, run: str) -> Service | Awaitable[Service | None] | None:
        return self._services.find((project, run))

    def list_models(self, project: str) -> tuple[Model, ...] | Awaitable[tuple[Model, ...]]:
        """Of several runs with the same name of the model, the newest's."""
        return self._models.find(project)

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
        self._services.forget()
        self._models.forget()

    async def _read_service(self, key: tuple[str, str]) -> Service | None:
        project, run = key
        newest = _active_runs(project).where(RunRow.run_name == run).limit(1)
        async with self._database.session() as session:
            row = (await session.execute(newest)).one_or_none()
            if row is None or row.service_spec is None or not _is_served_here(row.service_spec):
                return None
            replicas = await _replicas(session, [row.id])
        return _service(project, row, replicas[row.id])

    async def _read_models(self, project: str) -> tuple[Model, ...]:
        async with self._database.session() as session:
            found = await session.execute(_active_runs(project).where(RunRow.service_spec.is_not(None)))
            rows = [row for row in found if _has_model(row.service_spec)]
            replicas = await _replicas(session, [row.id for row in rows])
        models: dict[str, Model] = {}
        for row in rows:
            service = _service(project, row, replicas[row.id])
            if service.replicas or service.wakes:
                model = _model(row, service)
                models.setdefault(model.name, model)
        return tuple(models.values())


def _active_runs(project: str) -> Select[Unpack[tuple[Any, ...]]]:
    """Newest first."""
    return (
        select(
            RunRow.id, RunRow.run_name, RunRow.run_spec, RunRow.service_spec, RunRow.status, RunRow.stop_requested,
            RunRow.submitted_at,
        )
        .join(ProjectRow, ProjectRow.id == RunRow.project_id)
        .where(ProjectRow.name == project, ProjectRow.deleted.is_(False))
        .where(RunRow.deleted.is_(False), RunRow.finished_at.is_(None))
        .order_by(RunRow.submitted_at.desc(), RunRow.id)
    )  # fmt: skip


async def _replicas(session: AsyncSession, run_ids: Sequence[UUID]) -> Mapping[UUID, tuple[str, ...]]:
    """Addresses of those that take traffic."""
    found = await session.execute(
        select(JobRow.run_id, JobRow.service_address, JobRow.healthy)
        .where(JobRow.run_id.in_(run_ids), JobRow.status == JobStatus.RUNNING.value)
        .where(JobRow.registered.is_(True), JobRow.service_address.is_not(None))
        .order_by(JobRow.replica_num)
    )
    by_run: dict[UUID, list[tuple[str, bool]]] = {run_id: [] for run_id in run_ids}
    for run_id, address, is_healthy in found:
        if address is not None:
            by_run[run_id].append((address, is_healthy))
    return {run_id: _preferred(replicas) for run_id, replicas in by_run.items()}


def _service(project: str, row: Row[Unpack[tuple[Any, ...]]], replicas: tuple[str, ...]) -> Service:
    spec = json.loads(row.run_spec)
    configuration = spec.get("configuration", {})
    model = configuration.get("model") or {}
    is_ending = row.stop_requested is not None or row.status == RunStatus.TERMINATING.value
    return Service(
        id=str(row.id),
        project=project,
        run=row.run_name,
        auth=configuration.get("auth", True),
        strip_prefix=configuration.get("strip_prefix", True),
        replicas=replicas,
        wakes=not is_ending and any(group.low == 0 and group.scaling for group in groups_of(spec)),
        rate_limits=tuple(_rate_limit(limit) for limit in configuration.get("rate_limits") or ()),
        is_cors_open=model.get("format") == "openai",
        balancing=_policy(configuration.get("balancing") or {}),
        counts_tokens=bool(model),
    )


def _has_model(service_spec: str) -> bool:
    return json.loads(service_spec).get("model") is not None and _is_served_here(service_spec)


def _model(row: Row[Unpack[tuple[Any, ...]]], service: Service) -> Model:
    model = json.loads(row.run_spec)["configuration"]["model"]
    is_openai = model["format"] == "openai"
    return Model(
        name=model["name"],
        created=int(row.submitted_at.timestamp()),
        service=service,
        prefix=model.get("prefix", "/v1") if is_openai else None,
        chat_template=model.get("chat_template"),
        eos_token=model.get("eos_token"),
    )


def _policy(balancing: Mapping[str, Any]) -> Policy:
    match balancing.get("policy"):
        case "least_requests":
            return LeastRequests()
        case "prefix":
            return ByPrefix(balancing["prefix_length"], balancing["load_factor"])
        case "session":
            header, cookie = balancing.get("header"), balancing.get("cookie")
            return BySession(header and header.lower().encode(), cookie and cookie.encode())
        case _:
            return None


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

"""Which services a gateway is to publish, with which replicas: what the database says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.jobs import JobStatus
from dstack.server.db.queries.gateways import list_published
from dstack.server.db.tables import JobRow


@dataclass(frozen=True)
class Entrypoint:
    """Where the models of a project are called."""

    project: str
    domain: str
    https: bool


@dataclass(frozen=True)
class WantedService:
    """`body`: of its registration, but for the project's private key. `replicas`: addresses by the job's id."""

    run_id: UUID
    project_id: UUID
    project: str
    run: str
    body: Mapping[str, Any]
    entrypoint: Entrypoint | None
    replicas: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> tuple[str, str]:
        """As the gateway app keeps it."""
        return self.project.lower(), self.run.lower()


@dataclass(frozen=True)
class Terms:
    """What all services of this server have in common. `read_timeout` in seconds."""

    max_body_bytes: int
    read_timeout: int


async def wanted_services(session: AsyncSession, gateway_id: UUID, terms: Terms) -> list[WantedService]:
    """Two queries."""
    rows = await list_published(session, gateway_id)
    replicas = await _replicas(session, [row.id for row in rows])
    found = []
    for row in rows:
        spec, service = json.loads(row.run_spec)["configuration"], json.loads(row.service_spec)
        url = urlsplit(service["url"])
        body = {
            "id": str(row.id),
            "run_name": row.run_name,
            "domain": url.hostname,
            "https": url.scheme == "https",
            "auth": spec.get("auth", True),
            "client_max_body_size": terms.max_body_bytes,
            "options": service.get("options") or {},
            "rate_limits": spec.get("rate_limits") or [],
            "read_timeout": terms.read_timeout,
        }
        entrypoint = _entrypoint(row.project_name, body) if service.get("model") else None
        names = (row.id, row.project_id, row.project_name, row.run_name)
        found.append(WantedService(*names, body, entrypoint, replicas[row.id]))
    return found


def _entrypoint(project: str, body: Mapping[str, Any]) -> Entrypoint:
    domain = str(body["domain"]).partition(".")[2]
    return Entrypoint(project, f"gateway.{domain}", body["https"])


async def _replicas(session: AsyncSession, run_ids: Sequence[UUID]) -> dict[UUID, Mapping[str, str]]:
    """Those that take traffic; of these, where there are any, those whose probes succeed (better B6)."""
    query = (
        select(JobRow.run_id, JobRow.id, JobRow.service_address, JobRow.healthy)
        .where(JobRow.run_id.in_(run_ids), JobRow.status == JobStatus.RUNNING.value)
        .where(JobRow.registered.is_(True), JobRow.service_address.is_not(None))
    )
    found: dict[UUID, dict[str, str]] = {run_id: {} for run_id in run_ids}
    healthy: dict[UUID, dict[str, str]] = {run_id: {} for run_id in run_ids}
    for run_id, job_id, address, is_healthy in await session.execute(query):
        if address is None:
            continue
        found[run_id][str(job_id)] = address
        if is_healthy:
            healthy[run_id][str(job_id)] = address
    return {run_id: healthy[run_id] or found[run_id] for run_id in run_ids}

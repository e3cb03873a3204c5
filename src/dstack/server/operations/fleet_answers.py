"""Fleets and instances as the REST API shows them, from their rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.backends import BackendType
from dstack.core.fleets import Fleet, FleetSpec
from dstack.core.instances import GpuDriverInfo, Instance, InstanceStatus, InstanceType
from dstack.core.server_config import REMOTE_BACKENDS
from dstack.server.db.queries import fleets as queries


async def load(session: AsyncSession, rows: Sequence[RowMapping]) -> list[Fleet]:
    """One query for the instances of all. `rows`: columns of `fleets` and `project_name`."""
    instances: dict[UUID, list[Instance]] = {row["id"]: [] for row in rows}
    owners = {row["id"]: row for row in rows}
    for found in await queries.list_instances(session, list(instances)):
        owner = owners[found["fleet_id"]]
        names = {"project_name": owner["project_name"], "fleet_name": owner["name"]}
        instances[owner["id"]].append(to_instance({**found, **names}))
    return [to_fleet(row, instances[row["id"]]) for row in rows]


def to_fleet(row: RowMapping, instances: list[Instance]) -> Fleet:
    return Fleet(
        id=row["id"],
        name=row["name"],
        project_name=row["project_name"],
        spec=FleetSpec.model_validate_json(row["spec"], extra="ignore"),
        created_at=row["created_at"],
        status=row["status"],
        status_message=row["status_message"],
        instances=instances,
    )


def to_instance(row: Mapping[str, Any] | RowMapping) -> Instance:
    """`row`: columns of `instances` and `project_name`, `fleet_name`."""
    offer = json.loads(row["offer"]) if row["offer"] else None
    address = json.loads(row["address"]) if row["address"] else {}
    return Instance(
        id=row["id"],
        project_name=row["project_name"],
        backend=wire_backend(row["backend"]),
        instance_type=InstanceType.model_validate(offer["instance"], extra="ignore") if offer else None,
        name=row["name"],
        fleet_id=row["fleet_id"],
        fleet_name=row["fleet_name"],
        instance_num=row["instance_num"],
        hostname=address.get("hostname") or row["ssh_hostname"],
        status=row["status"],
        unreachable=row["unreachable_since"] is not None,
        health_status=row["health"],
        termination_reason=row["termination_reason"],
        termination_reason_message=row["termination_reason_message"] or _why_not_ready(row),
        created=row["created_at"],
        finished_at=row["finished_at"],
        region=row["region"],
        availability_zone=(address.get("details") or {}).get("availability_zone"),
        price=row["price"],
        total_blocks=row["total_blocks"],
        busy_blocks=row["busy_blocks"],
        gpu_driver=_gpu_driver(json.loads(row["agent_info"]) if row["agent_info"] else {}),
    )


def _why_not_ready(row: Mapping[str, Any] | RowMapping) -> str | None:
    """What stands in the way of a host that is to be added or does not answer; it is tried again."""
    is_waited_for = row["status"] == InstanceStatus.PENDING.value or row["unreachable_since"] is not None
    return row["last_error"] if is_waited_for else None


def wire_backend(type: str | None) -> BackendType | None:
    """The value of a backend in the REST API."""
    if type is None:
        return None
    return BackendType.REMOTE if type in REMOTE_BACKENDS else BackendType(type)


def _gpu_driver(agent_info: Mapping[str, Any]) -> GpuDriverInfo | None:
    host = agent_info.get("host") or {}
    version, gpus = host.get("gpu_driver_version"), host.get("gpus") or []
    return GpuDriverInfo(vendor=gpus[0]["vendor"] if gpus else None, version=version) if version else None

"""Gateways as the REST API shows them, from their rows."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.backends import BackendType
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.gateways import Gateway, GatewayReplica
from dstack.server.db.queries import gateways as queries
from dstack.server.db.tables import GatewayReplicaRow


async def load(session: AsyncSession, rows: Sequence[RowMapping], default_id: UUID | None) -> list[Gateway]:
    """One query for the machines of all. `rows`: columns of `gateways` and `project_name`; `default_id`: the
    default one of the project that asks."""
    replicas = await queries.list_replicas(session, [row["id"] for row in rows])
    return [_to_gateway(row, replicas[row["id"]], is_default=row["id"] == default_id) for row in rows]


def _to_gateway(row: RowMapping, replicas: Sequence[GatewayReplicaRow], *, is_default: bool) -> Gateway:
    configuration = GatewayConfiguration.model_validate_json(row["configuration"], extra="ignore")
    hostnames = [replica.hostname for replica in replicas if replica.hostname is not None]
    return Gateway(
        id=row["id"],
        name=row["name"],
        project_name=row["project_name"],
        configuration=configuration,
        created_at=row["created_at"],
        status=row["status"],
        status_message=row["status_message"] or _of_the_only(replicas),
        hostname=row["hostname"],
        wildcard_domain=row["wildcard_domain"],
        default=is_default,
        replicas=[_to_replica(replica) for replica in replicas],
        backend=configuration.backend,
        region=configuration.region,
        ip_address=", ".join(hostnames) or None,
        instance_id="",
    )


def _of_the_only(replicas: Sequence[GatewayReplicaRow]) -> str | None:
    """What is wrong with the machine, where there is just one."""
    return (replicas[0].status_message or replicas[0].last_error) if len(replicas) == 1 else None


def _to_replica(row: GatewayReplicaRow) -> GatewayReplica:
    return GatewayReplica(
        hostname=row.hostname,
        replica_num=row.replica_num,
        backend=None if row.backend is None else BackendType(row.backend),
        region=row.region,
        created_at=row.created_at,
        status=row.status,
        status_message=row.status_message or row.last_error,
    )

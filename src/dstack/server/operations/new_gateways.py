"""New gateways: what is asked for, checked, and as rows. Private keys are never shown."""

from __future__ import annotations

import random
import uuid

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.canonical import dump_json
from dstack.core.configurations.fleet import SSHParams
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.diff import hosts_by_name
from dstack.core.errors import BackendNotAvailable, InvalidRequest, ResourceExists
from dstack.core.gateways import GatewayReplicaStatus, GatewayStatus
from dstack.core.names import check_resource_name, random_name
from dstack.server import clock
from dstack.server.db.locks import one_at_a_time
from dstack.server.db.queries import gateways as queries
from dstack.server.db.tables import GatewayReplicaRow, GatewayRow
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.ssh_hosts import check_hosts, params_without_keys, target_of

KEY_CONTEXT = "gateway_replicas.ssh_target"


async def add(
    ctx: Context, session: AsyncSession, at: InProject, configuration: GatewayConfiguration
) -> GatewayRow:
    """The rows of a gateway and its machines. Raises InvalidRequest, BackendNotAvailable, ResourceExists."""
    # One at a time on the server, so that a name and a host are given to one gateway only.
    await one_at_a_time(session, "gateways")
    name = configuration.name or await _free_name(session, at)
    if await queries.find_by_name(session, at.project.id, name) is not None:
        raise ResourceExists(f"Gateway {name!r} exists in project {at.project.name!r} already")
    ssh = _hosts(at, configuration)
    check(configuration, len(ssh.hosts), ctx.settings.gateway_max_replicas)
    await _assert_free(session, ssh)
    now = clock.now()
    row = GatewayRow(
        id=uuid.uuid4(),
        project_id=at.project.id,
        name=name,
        created_at=now,
        last_processed_at=now,
        status=GatewayStatus.SUBMITTED.value,
        configuration=dump_json(without_keys(configuration).model_copy(update={"name": name})),
        hostname=ssh_hostname(ssh),
    )
    session.add(row)
    await session.flush()
    for num, host in enumerate(hosts_by_name(ssh).values()):
        id = uuid.uuid4()
        target = ctx.encryption.encrypt(target_of(host, ssh).dump(), f"{KEY_CONTEXT}:{id}")
        session.add(
            GatewayReplicaRow(
                id=id,
                gateway_id=row.id,
                replica_num=num,
                created_at=now,
                last_processed_at=now,
                status=GatewayReplicaStatus.SUBMITTED.value,
                backend=configuration.backend.value,
                region=configuration.region,
                hostname=host.hostname,
                ssh_target=target,
            )
        )
    await session.flush()
    return row


def _hosts(at: InProject, configuration: GatewayConfiguration) -> SSHParams:
    if configuration.ssh_config is None:
        raise BackendNotAvailable(
            f"Project {at.project.name!r} has no backend {configuration.backend.value!r} that makes gateways; use "
            "`backend: ssh` with a host of your own, or leave it: the server publishes services itself"
        )
    check_hosts(configuration.ssh_config)
    return configuration.ssh_config


def check(configuration: GatewayConfiguration, hosts: int, at_most: int) -> None:
    """Raises InvalidRequest."""
    certificate = configuration.certificate
    if hosts > at_most:
        raise InvalidRequest(
            f"A gateway may have {at_most} machines (DSTACK_SERVER_GATEWAY_MAX_REPLICAS), not {hosts}"
        )
    if certificate is not None and certificate.type != "lets-encrypt":
        raise InvalidRequest(
            f"Certificates of type {certificate.type!r} need a load balancer of that cloud; with `backend: ssh` "
            "use `lets-encrypt`, or `certificate: null`"
        )
    if configuration.load_balancer is not None:
        raise InvalidRequest("With `backend: ssh` there is no `load_balancer`; leave it out")
    if certificate is not None and hosts > 1:
        raise InvalidRequest("Several hosts cannot share certificates of `lets-encrypt`: set `certificate: null`")


def check_name(configuration: GatewayConfiguration) -> None:
    """Raises InvalidRequest."""
    try:
        if configuration.name is not None:
            check_resource_name(configuration.name, "gateway")
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def without_keys(configuration: GatewayConfiguration) -> GatewayConfiguration:
    """As it is stored and shown."""
    ssh = configuration.ssh_config
    if ssh is None:
        return configuration
    return configuration.model_copy(update={"ssh_config": params_without_keys(ssh)})


def ssh_hostname(ssh: SSHParams) -> str | None:
    """Of a gateway on one machine."""
    names = list(hosts_by_name(ssh))
    return names[0] if len(names) == 1 else None


async def _assert_free(session: AsyncSession, ssh: SSHParams) -> None:
    query = (
        select(GatewayReplicaRow.hostname, GatewayRow.name)
        .join(GatewayRow, GatewayRow.id == GatewayReplicaRow.gateway_id)
        .where(GatewayReplicaRow.hostname.in_(list(hosts_by_name(ssh))), GatewayRow.deleted.is_(False))
        .where(GatewayReplicaRow.status != GatewayReplicaStatus.TERMINATED.value)
    )
    for hostname, name in await session.execute(query):
        raise InvalidRequest(f"Host {hostname} carries gateway {name!r} already; a host can carry one only")


async def _free_name(session: AsyncSession, at: InProject) -> str:
    chance = random.Random()
    while True:
        name = random_name(chance)
        if await queries.find_by_name(session, at.project.id, name) is None:
            return name

"""The hosts of gateways: logged in to with pinned keys, given the gateway app, and rid of it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import select, update

from dstack.core.errors import HostKeyChanged, HostUnfit, Unreachable
from dstack.server.db.engine import Database
from dstack.server.db.tables import GatewayReplicaRow
from dstack.server.encryption import Encryption
from dstack.server.gateways import provisioning
from dstack.server.gateways.looking import GatewayHost
from dstack.server.gateways.provisioning import Wanted
from dstack.server.hosts.ssh import connecting, pinning
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Gateways that are installed at the same time."""
CONTEXT = "gateway_replicas.ssh_target"


@dataclass(frozen=True)
class Ready:
    """A connection to a host on which the gateway app answers, in that version."""

    connection: asyncssh.SSHClientConnection
    target: SSHTarget
    host: GatewayHost
    version: str


class GatewayHosts:
    """By the id of the gateway's replica."""

    def __init__(
        self,
        database: Database,
        encryption: Encryption,
        *,
        package_url: str | None = None,
        updates: bool = True,
        connect_seconds: float = connecting.CONNECT_SECONDS,
    ) -> None:
        """`updates`: whether a gateway that has another version is given this server's."""
        self._database = database
        self._encryption = encryption
        self._wanted = Wanted(package_url)
        self._updates = updates
        self._connect_seconds = connect_seconds
        self._not_updated: set[UUID] = set()
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def install(self, replica_id: UUID) -> str:
        """The gateway app answers on the host when this returns; its version. Raises HostError kinds."""
        async with self._at_once:
            target = await self.target(replica_id)
            connection = await self.connect(replica_id, target)
            try:
                return (await provisioning.ensure_installed(connection, target, self._wanted))[0]
            finally:
                connecting.close(connection)

    async def uninstall(self, replica_id: UUID) -> None:
        """Nothing of the gateway is left on the host. Raises HostError kinds."""
        target = await self.target(replica_id)
        connection = await self.connect(replica_id, target)
        try:
            await provisioning.uninstall(connection, target)
        finally:
            connecting.close(connection)

    async def ready(self, replica_id: UUID) -> Ready:
        """A connection to the gateway, which has this server's version unless updates are off.

        Raises HostError kinds.
        """
        target = await self.target(replica_id)
        connection = await self.connect(replica_id, target)
        try:
            return await self._ready(replica_id, connection, target)
        except BaseException:
            connecting.close(connection)
            raise

    async def _ready(self, replica_id: UUID, connection: asyncssh.SSHClientConnection, target: SSHTarget) -> Ready:
        """An update that failed is not tried again before the server is started anew."""
        if self._updates and replica_id not in self._not_updated:
            try:
                async with self._at_once:
                    version, host = await provisioning.ensure_installed(connection, target, self._wanted)
                return Ready(connection, target, host, version)
            except HostUnfit as error:
                logger.warning("The gateway on %s is not updated: %s", target, error)
                self._not_updated.add(replica_id)
        host, version = await provisioning.found(connection, target)
        return Ready(connection, target, host, version)

    async def target(self, replica_id: UUID) -> SSHTarget:
        """How to log in to the host, with the pinned keys. Raises Unreachable when there is none."""
        row = GatewayReplicaRow
        columns = (row.ssh_target, row.host_key, row.jump_host_key)
        async with self._database.session() as session:
            found = (await session.execute(select(*columns).where(row.id == replica_id))).first()
        if found is None or found[0] is None:
            raise Unreachable("The machine of the gateway is no host that is reached over SSH")
        target = SSHTarget.load(self._encryption.decrypt(found[0], f"{CONTEXT}:{replica_id}"))
        return pinning.with_pins(target, found[1], found[2])

    async def connect(self, replica_id: UUID, target: SSHTarget) -> asyncssh.SSHClientConnection:
        """Raises HostError kinds."""

        async def pin(hop: SSHTarget, key: str) -> None:
            await self._record(replica_id, hop, key, is_jump=hop is target.jump)

        return await connecting.connect(target, pin, self._connect_seconds)

    async def _record(self, replica_id: UUID, hop: SSHTarget, key: str, *, is_jump: bool) -> None:
        column = GatewayReplicaRow.jump_host_key if is_jump else GatewayReplicaRow.host_key
        own = GatewayReplicaRow.id == replica_id
        async with self._database.transaction() as session:
            await session.execute(update(GatewayReplicaRow).where(own, column.is_(None)).values({column.key: key}))
            known = await session.scalar(select(column).where(own))
        if known != key:
            raise HostKeyChanged(f"{hop} showed two host keys at once; somebody may be in between")

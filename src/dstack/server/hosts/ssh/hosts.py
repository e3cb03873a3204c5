"""The SSH hosts of all fleets: the agent is put on them and taken off, and each has one connection to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import select

from dstack.backends.base import InstanceAddress
from dstack.core.errors import Unreachable
from dstack.server.db.engine import Database
from dstack.server.db.tables import InstanceRow
from dstack.server.encryption import Encryption
from dstack.server.hosts.ssh import connecting, deploying
from dstack.server.hosts.ssh.archive import AgentArchive
from dstack.server.hosts.ssh.deploying import Deployed
from dstack.server.hosts.ssh.streams import ChannelSession
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

P = TypeVar("P", bound=asyncio.BaseProtocol)
DEPLOYS_AT_ONCE = 32
logger = logging.getLogger(__name__)


class SSHHosts:
    """Hosts by the id of their instance. `close()` ends all connections; the hosts and their jobs go on."""

    def __init__(self, database: Database, encryption: Encryption, folder: Path) -> None:
        self._database = database
        self._encryption = encryption
        self._deploying = asyncio.Semaphore(DEPLOYS_AT_ONCE)
        self._connections: dict[UUID, asyncio.Task[asyncssh.SSHClientConnection]] = {}
        self.archive = AgentArchive(folder)

    async def deploy(self, instance_id: UUID) -> Deployed:
        """The agent runs on the host when this returns. Raises HostError kinds."""
        target = await self.target(instance_id)
        archive = await self.archive.get()
        async with self._deploying:
            return await deploying.deploy(target, archive.content)

    async def remove(self, instance_id: UUID) -> None:
        """Takes the agent off the host. Raises HostError kinds."""
        target = await self.target(instance_id)
        archive = await self.archive.get()
        await self._disconnect(instance_id)
        async with self._deploying:
            await deploying.remove(target, archive.content)

    async def target(self, instance_id: UUID) -> SSHTarget:
        """How to log in to the host, with its pinned key. Raises Unreachable when the instance is gone."""
        query = select(InstanceRow.ssh_target, InstanceRow.host_key).where(InstanceRow.id == instance_id)
        async with self._database.session() as session:
            found = (await session.execute(query)).first()
        if found is None or found[0] is None:
            raise Unreachable("The instance is no host that is reached over SSH")
        target = SSHTarget.load(self._encryption.decrypt(found[0], f"instances.ssh_target:{instance_id}"))
        return replace(target, host_key=target.host_key or found[1])

    async def open(self, address: InstanceAddress) -> tuple[Any, Any]:
        """Reader and writer to the agent of that host, over its one connection. Raises HostError kinds."""
        async with self._channel(address) as (connection, path):
            return await connection.open_unix_connection(path, encoding=None)

    async def dial(self, address: InstanceAddress, factory: Callable[[], P]) -> P:
        """The same, for a protocol that takes the bytes as they come."""
        async with self._channel(address) as (connection, path):
            protocol = factory()
            session: Any = ChannelSession(protocol)
            await connection.create_unix_connection(lambda: session, path, encoding=None)
            return protocol

    @asynccontextmanager
    async def _channel(self, address: InstanceAddress) -> AsyncIterator[tuple[asyncssh.SSHClientConnection, str]]:
        import asyncssh  # noqa: PLC0415 - loaded with the first host

        instance_id = UUID(address.backend_id)
        connection = await self._connect(instance_id)
        try:
            yield connection, address.remote_agent_socket or ""
        except asyncssh.ChannelOpenError as error:
            raise Unreachable(f"No agent answers on {address.hostname}: {error.reason}") from error
        except (asyncssh.Error, OSError) as error:
            self._drop(instance_id, connection)
            raise Unreachable(f"The connection to {address.hostname} broke", detail=str(error)) from error

    async def _connect(self, instance_id: UUID) -> asyncssh.SSHClientConnection:
        known = self._connections.get(instance_id)
        if known is None or (known.done() and (known.exception() is not None or known.result().is_closed())):
            known = self._connections[instance_id] = asyncio.ensure_future(self._log_in(instance_id))
        try:
            return await asyncio.shield(known)
        except asyncio.CancelledError:
            if not known.cancelled():
                raise
            raise Unreachable("The host is being let go of") from None

    def _drop(self, instance_id: UUID, broken: asyncssh.SSHClientConnection) -> None:
        """Closes that connection; a newer one, which another caller has opened meanwhile, stays."""
        known = self._connections.get(instance_id)
        is_well = known is not None and known.done() and not known.cancelled() and known.exception() is None
        if known is not None and is_well and known.result() is broken:
            del self._connections[instance_id]
        connecting.close(broken)

    async def _log_in(self, instance_id: UUID) -> asyncssh.SSHClientConnection:
        return await connecting.connect(await self.target(instance_id))

    async def _disconnect(self, instance_id: UUID) -> None:
        """Ends the host's connection, or the attempt at one."""
        known = self._connections.pop(instance_id, None)
        if known is None:
            return
        known.cancel()
        ended = (await asyncio.gather(known, return_exceptions=True))[0]
        if not isinstance(ended, BaseException):
            connecting.close(ended)

    async def close(self) -> None:
        for instance_id in list(self._connections):
            await self._disconnect(instance_id)

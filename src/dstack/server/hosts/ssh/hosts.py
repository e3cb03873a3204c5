"""The SSH hosts of all fleets: the agent is put on them and taken off, and each has one connection to it."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import select

from dstack.backends.base import InstanceAddress
from dstack.core.errors import HostUnfit, Unreachable
from dstack.server.db.engine import Database
from dstack.server.db.tables import InstanceRow
from dstack.server.encryption import Encryption
from dstack.server.hosts.ssh import connecting, deploying, pinning
from dstack.server.hosts.ssh.archive import AgentArchive
from dstack.server.hosts.ssh.deploying import Deployed
from dstack.server.hosts.ssh.streams import ChannelSession
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

P = TypeVar("P", bound=asyncio.BaseProtocol)
DEPLOYS_AT_ONCE = 32
COOL_DOWN_SECONDS = 3.0
"""For so long a failed attempt at a connection stands for all who want one."""
PROJECT_KEY_COMMENT = "dstack-project-"
"""Ends the lines of authorized_keys by which gateways reach replicas on the host, before the project's id."""
logger = logging.getLogger(__name__)


class SSHHosts:
    """Hosts by the id of their instance. `close()` ends all connections; the hosts and their jobs go on."""

    def __init__(
        self,
        database: Database,
        encryption: Encryption,
        folder: Path,
        *,
        connect_seconds: float = connecting.CONNECT_SECONDS,
        cool_down_seconds: float = COOL_DOWN_SECONDS,
        is_pooled: bool = True,
    ) -> None:
        self._database = database
        self._encryption = encryption
        self._connect_seconds = connect_seconds
        self._cool_down_seconds = cool_down_seconds
        self._is_pooled = is_pooled
        self._own: set[asyncio.Task[None]] = set()
        """Where connections are not pooled: each ends one with its only channel."""
        self._deploying = asyncio.Semaphore(DEPLOYS_AT_ONCE)
        self._connections: dict[UUID, asyncio.Future[asyncssh.SSHClientConnection]] = {}
        self._cool_at: dict[UUID, float] = {}
        """When hosts that could not be connected to may be tried again (the event loop's clock)."""
        self.archive = AgentArchive(folder)

    async def deploy(self, instance_id: UUID) -> Deployed:
        """The agent runs on the host when this returns, and there is a connection to it. Raises HostError kinds.

        Always tries: whoever deploys keeps to a back-off of their own.
        """
        archive = await self.archive.get()
        async with self._deploying:
            target = await self.target(instance_id)
            connection = await self._log_in(instance_id, target)
            try:
                deployed = await deploying.deploy(connection, target, archive.content)
            except BaseException:
                connecting.close(connection)
                raise
        self._adopt(instance_id, connection)
        return deployed

    async def remove(self, instance_id: UUID) -> None:
        """Takes the agent off the host. Raises HostError kinds."""
        archive = await self.archive.get()
        await self._disconnect(instance_id)
        async with self._deploying:
            target = await self.target(instance_id)
            connection = await self._log_in(instance_id, target)
            try:
                await _forget_project_keys(connection, target)
                await deploying.remove(connection, target, archive.content)
            finally:
                connecting.close(connection)

    async def target(self, instance_id: UUID) -> SSHTarget:
        """How to log in to the host, with the pinned keys. Raises Unreachable when the instance is gone."""
        columns = (InstanceRow.ssh_target, InstanceRow.host_key, InstanceRow.jump_host_key)
        async with self._database.session() as session:
            found = (await session.execute(select(*columns).where(InstanceRow.id == instance_id))).first()
        if found is None or found[0] is None:
            raise Unreachable("The instance is no host that is reached over SSH")
        target = SSHTarget.load(self._encryption.decrypt(found[0], f"instances.ssh_target:{instance_id}"))
        return pinning.with_pins(target, found[1], found[2])

    async def open(self, address: InstanceAddress) -> tuple[Any, Any]:
        """Reader and writer to the agent of that host, over its one connection. Raises HostError kinds."""
        async with self._channel(UUID(address.backend_id), "No agent answers") as connection:
            path = address.remote_agent_socket or ""
            reader, writer = await connection.open_unix_connection(path, encoding=None)
            self._let_end(connection, writer.channel)
            return reader, writer

    async def dial(self, address: InstanceAddress, factory: Callable[[], P]) -> P:
        """The same, for a protocol that takes the bytes as they come."""
        async with self._channel(UUID(address.backend_id), "No agent answers") as connection:
            protocol = factory()
            session: Any = ChannelSession(protocol)
            path = address.remote_agent_socket or ""
            channel, _ = await connection.create_unix_connection(lambda: session, path, encoding=None)
            self._let_end(connection, channel)
            return protocol

    async def dial_port(
        self, instance_id: UUID, port: int, protocol: asyncio.BaseProtocol
    ) -> asyncio.WriteTransport:
        """Connects the protocol to a port on the loopback of that host. Raises HostError kinds."""
        async with self._channel(instance_id, f"Nobody answers on port {port}") as connection:
            session: Any = ChannelSession(protocol)
            channel, _ = await connection.create_connection(lambda: session, "localhost", port, encoding=None)
            self._let_end(connection, channel)
            transport: asyncio.WriteTransport = session.transport
            return transport

    async def run(self, instance_id: UUID, script: str) -> None:
        """Runs a script of the shell there, and first on the host that the way leads through. Raises HostError."""
        connection = await self._connect(instance_id)
        for hop in (connection.get_extra_info("dstack_tunnel"), connection):
            if hop is not None:
                async with connecting.translated(await self.target(instance_id)):
                    done = await hop.run(f"exec /bin/sh -c {shlex.quote(script)}")
                if done.exit_status:
                    raise HostUnfit(f"A command failed on the host: {str(done.stderr).strip()[-300:]}")

    @asynccontextmanager
    async def _channel(self, instance_id: UUID, nobody: str) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """`nobody`: what it means that the host opens no channel, for people."""
        import asyncssh  # noqa: PLC0415 - loaded with the first host

        connection = await self._connect(instance_id)
        host = connection.get_extra_info("peername", ("the host",))[0]
        try:
            yield connection
        except asyncssh.ChannelOpenError as error:
            if not self._is_pooled:
                connecting.close(connection)
            raise Unreachable(f"{nobody} on {host}: {error.reason}") from error
        except (asyncssh.Error, OSError) as error:
            self._drop(instance_id, connection)
            raise Unreachable(f"The connection to {host} broke", detail=str(error)) from error
        except asyncio.CancelledError:
            if not self._is_pooled:
                connecting.close(connection)
            raise

    def _let_end(self, connection: asyncssh.SSHClientConnection, channel: Any) -> None:
        """A connection that is not pooled ends with its channel."""
        if self._is_pooled:
            return

        async def end() -> None:
            try:
                await channel.wait_closed()
            finally:
                connecting.close(connection)

        task = asyncio.ensure_future(end())
        self._own.add(task)
        task.add_done_callback(self._own.discard)

    async def _connect(self, instance_id: UUID) -> asyncssh.SSHClientConnection:
        if not self._is_pooled:
            return await self._log_in(instance_id, await self.target(instance_id))
        known = self._connections.get(instance_id)
        if known is None or not self._stands(instance_id, known):
            known = self._connections[instance_id] = asyncio.ensure_future(self._reach(instance_id))
        try:
            return await asyncio.shield(known)
        except asyncio.CancelledError:
            if not known.cancelled():
                raise
            raise Unreachable("The host is being let go of") from None

    def _stands(self, instance_id: UUID, known: asyncio.Future[asyncssh.SSHClientConnection]) -> bool:
        """Whether it is a connection, the way to one, or a failure that is not worth another attempt yet."""
        if not known.done():
            return True
        made = _made(known)
        if made is not None:
            return not made.is_closed()
        return not known.cancelled() and asyncio.get_running_loop().time() < self._cool_at[instance_id]

    async def _reach(self, instance_id: UUID) -> asyncssh.SSHClientConnection:
        try:
            return await self._log_in(instance_id, await self.target(instance_id))
        finally:
            self._cool_at[instance_id] = asyncio.get_running_loop().time() + self._cool_down_seconds

    def _adopt(self, instance_id: UUID, connection: asyncssh.SSHClientConnection) -> None:
        """The host's connection from now on, unless it has another one."""
        known = self._connections.get(instance_id)
        other = None if known is None else _made(known)
        if not self._is_pooled:
            connecting.close(connection)
            return
        if known is not None and (not known.done() or (other is not None and not other.is_closed())):
            connecting.close(connection)
            return
        made = self._connections[instance_id] = asyncio.get_running_loop().create_future()
        made.set_result(connection)

    def _drop(self, instance_id: UUID, broken: asyncssh.SSHClientConnection) -> None:
        """Closes that connection; a newer one, which another caller has opened meanwhile, stays."""
        known = self._connections.get(instance_id)
        if known is not None and _made(known) is broken:
            del self._connections[instance_id]
        connecting.close(broken)

    async def _log_in(self, instance_id: UUID, target: SSHTarget) -> asyncssh.SSHClientConnection:
        async def pin(hop: SSHTarget, key: str) -> None:
            is_jump = hop is target.jump
            await pinning.record(self._database, instance_id, hop, key, is_jump=is_jump)

        return await connecting.connect(target, pin, self._connect_seconds)

    async def _disconnect(self, instance_id: UUID) -> None:
        """Ends the host's connection, or the attempt at one."""
        known = self._connections.pop(instance_id, None)
        self._cool_at.pop(instance_id, None)
        if known is None:
            return
        known.cancel()
        ended = (await asyncio.gather(known, return_exceptions=True))[0]
        if not isinstance(ended, BaseException):
            connecting.close(ended)

    async def close(self) -> None:
        for task in self._own:
            task.cancel()
        await asyncio.gather(*self._own, return_exceptions=True)
        for instance_id in list(self._connections):
            await self._disconnect(instance_id)


async def _forget_project_keys(connection: asyncssh.SSHClientConnection, target: SSHTarget) -> None:
    """Gateways log in to the host no more."""
    keys = "~/.ssh/authorized_keys"
    script = f"[ ! -f {keys} ] || sed -i '/ {PROJECT_KEY_COMMENT}[0-9a-f-]*$/d' {keys}"
    async with connecting.translated(target):
        await connection.run(f"exec /bin/sh -c {shlex.quote(script)}")


def _made(known: asyncio.Future[asyncssh.SSHClientConnection]) -> asyncssh.SSHClientConnection | None:
    """The connection of an attempt that has ended well."""
    has_it = known.done() and not known.cancelled() and known.exception() is None
    return known.result() if has_it else None

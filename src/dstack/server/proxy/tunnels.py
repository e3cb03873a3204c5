"""Tunnels to replicas on SSH hosts: opened at the first request, closed when idle or with their replica."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from uuid import UUID

from sqlalchemy import select

from dstack.core.errors import DstackError
from dstack.core.jobs import JobStatus
from dstack.proxy.ssh_process import Destination, TunnelError
from dstack.proxy.tunnels import Tunnels
from dstack.server.db.engine import Database
from dstack.server.db.tables import JobRow
from dstack.server.hosts.replicas import parse_remote
from dstack.server.hosts.ssh.hosts import SSHHosts
from dstack.server.hosts.ssh.target import SSHTarget

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0
IDLE_SECONDS = 300.0
"""A tunnel is closed after so long without a connection through it."""


class ReplicaTunnels:
    """The proxy's `Ways`. `start` and `stop` it with the proxy."""

    def __init__(
        self, database: Database, hosts: SSHHosts, folder: Path, *, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        """`folder`: for private keys, each there only while a connection is being made."""
        self._idle_seconds = idle_seconds
        self._database = database
        self._hosts = hosts
        self._tunnels = Tunnels(folder)
        self._destinations: dict[str, Destination] = {}
        """Of the tunnels that were asked for, by address of the replica."""
        self._used_at: dict[str, float] = {}
        self._in_use: Callable[[], Collection[str]] = tuple
        self._loop: asyncio.Task[None] | None = None

    def start(self, in_use: Callable[[], Collection[str]]) -> None:
        """`in_use`: addresses to which there are connections. Needs a running event loop."""
        self._in_use = in_use
        self._loop = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._tunnels.stop()

    async def open(self, address: str) -> str:
        """See `proxy.pool.Ways`. Raises TunnelError."""
        self._used_at[address] = time.monotonic()
        destination = self._destinations.get(address)
        if destination is None:
            destination = self._destinations[address] = await self._find(address)
        return await self._tunnels.open(destination, _target(address))

    def distrust(self, address: str, path: str) -> None:
        destination = self._destinations.get(address)
        if destination is not None:
            self._tunnels.distrust(destination, path)

    async def _find(self, address: str) -> Destination:
        remote = parse_remote(address)
        assert remote is not None
        try:
            return _destination(await self._hosts.target(remote.instance_id))
        except DstackError as error:
            raise TunnelError(f"There is no way to {address}: {error}") from error

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except DstackError as error:
                logger.warning("tunnels: %s", error.detail)
            except Exception:
                logger.exception("tunnels: a look at the replicas failed")

    async def look(self) -> None:
        """Closes the tunnels that nobody uses, and those whose replica is gone or is reached otherwise now."""
        now = time.monotonic()
        self._used_at.update(dict.fromkeys(self._in_use(), now))
        known = list(self._destinations)
        wanted = await self._running(known) if known else set()
        for address in known:
            is_idle = now - self._used_at[address] >= self._idle_seconds
            if is_idle or address not in wanted or await self._has_moved(address):
                await self._close(address)
        self._used_at = {address: at for address, at in self._used_at.items() if address in self._destinations}

    async def _running(self, addresses: Collection[str]) -> set[str]:
        """Those of replicas that are not over."""
        over = [status.value for status in JobStatus if status.is_finished()]
        remotes = (parse_remote(address) for address in addresses)
        instances: set[UUID] = {remote.instance_id for remote in remotes if remote is not None}
        query = select(JobRow.service_address).where(
            JobRow.instance_id.in_(instances), JobRow.status.not_in(over), JobRow.service_address.is_not(None)
        )
        async with self._database.session() as session:
            return {address for address in await session.scalars(query) if address is not None}

    async def _has_moved(self, address: str) -> bool:
        """Looked up only where connecting fails: the host may have another address, or take another key."""
        known = self._destinations[address]
        return self._tunnels.is_failing(known) and await self._find(address) != known

    async def _close(self, address: str) -> None:
        await self._tunnels.close(self._destinations.pop(address), _target(address))


def _target(address: str) -> str:
    remote = parse_remote(address)
    assert remote is not None
    return f"localhost:{remote.port}"


def _destination(target: SSHTarget) -> Destination:
    jump = None if target.jump is None else _destination(target.jump)
    where = (target.hostname, target.username, target.port)
    return Destination(*where, target.private_keys, target.host_key, jump)

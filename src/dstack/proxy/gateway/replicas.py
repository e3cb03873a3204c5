"""The ways to replicas: a socket with a name that stays, whatever becomes of the SSH connection behind it."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from dstack.proxy.gateway.errors import GatewayError
from dstack.proxy.gateway.models import Replica, SSHProxy
from dstack.proxy.gateway.settings import GatewaySettings
from dstack.proxy.ssh_process import Destination, TunnelError
from dstack.proxy.tunnels import Tunnels

PAUSE_S = 1.0

log = logging.getLogger(__name__)


class ReplicaSockets:
    """`open` and `close` them by the replica's id. nginx finds each at `path(id)`."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._tunnels = Tunnels(settings.dir / "keys", shared_sockets=settings.replica_sockets)
        self._keeping: dict[str, asyncio.Task[None]] = {}

    def path(self, replica: Replica) -> Path:
        if replica.socket is not None:
            return Path(replica.socket)
        return self._settings.replica_sockets / f"{replica.id}.sock"

    async def open(self, replica: Replica, project_key: str) -> None:
        """The way is open afterwards, and kept so. Raises GatewayError."""
        if replica.socket is not None or replica.id in self._keeping:
            return
        destination, target = destination_of(replica, project_key), f"{replica.app_host}:{replica.app_port}"
        try:
            self._point(replica, await self._tunnels.open(destination, target))
        except TunnelError as error:
            await self._tunnels.close(destination, target)
            raise GatewayError(f"No way to the replica: {error}") from error
        self._keep(replica, destination, target)

    def open_later(self, replica: Replica, project_key: str) -> None:
        """At start: as soon as it can be."""
        if replica.socket is None and replica.id not in self._keeping:
            self._keep(replica, destination_of(replica, project_key), f"{replica.app_host}:{replica.app_port}")

    def _keep(self, replica: Replica, destination: Destination, target: str) -> None:
        self._keeping[replica.id] = asyncio.ensure_future(self._keep_pointing(replica, destination, target))

    async def _keep_pointing(self, replica: Replica, destination: Destination, target: str) -> None:
        """A connection that is made anew has another socket."""
        try:
            while True:
                try:
                    path = await self._tunnels.open(destination, target)
                except TunnelError:
                    await asyncio.sleep(PAUSE_S)  # the tunnels try again, and say so
                    continue
                self._point(replica, path)
                await self._tunnels.lost(destination, path)
        finally:
            self.path(replica).unlink(missing_ok=True)
            await self._tunnels.close(destination, target)

    def _point(self, replica: Replica, path: str) -> None:
        link = self.path(replica)
        new = link.with_name(f".{link.name}.new")
        new.unlink(missing_ok=True)
        os.symlink(path, new)
        new.replace(link)

    async def close(self, replica: Replica) -> None:
        task = self._keeping.pop(replica.id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stop(self) -> None:
        tasks = list(self._keeping.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._tunnels.stop()


def destination_of(replica: Replica, project_key: str) -> Destination:
    """Raises GatewayError for an address that says no user."""
    user, separator, host = replica.ssh_destination.rpartition("@")
    if not separator or not user or not host:
        raise GatewayError(f"`ssh_host` of a replica is `user@host`, not {replica.ssh_destination!r}")
    jump: Destination | None = None
    for proxy, key in (
        (replica.ssh_head_proxy, replica.ssh_head_proxy_private_key),
        (replica.ssh_proxy, replica.ssh_proxy_private_key),
    ):
        if proxy is not None:
            jump = _jump(proxy, key or project_key, jump)
    return Destination(host, user, replica.ssh_port, (project_key,), replica.host_key, jump)


def _jump(proxy: SSHProxy, key: str, before: Destination | None) -> Destination:
    return Destination(proxy.hostname, proxy.username, proxy.port, (key,), proxy.host_key, before)

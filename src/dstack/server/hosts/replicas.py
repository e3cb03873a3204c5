"""Where replicas of services are, and connections to them for those who ask few questions (probes).

Requests of users do not come this way: the proxy has tunnels of its own (`server.proxy.tunnels`).
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from uuid import UUID

from dstack.backends.base import InstanceAddress
from dstack.core.errors import HostError
from dstack.proxy.pool import TUNNELLED
from dstack.server.hosts.ssh.hosts import SSHHosts

MAX_HEAD_BYTES = 65536


class RemotePort(NamedTuple):
    """A port on the loopback of an instance that is reached over SSH."""

    instance_id: UUID
    port: int


def replica_address(instance_id: UUID, instance: InstanceAddress, port: int) -> str:
    """`host:port` for a replica on this machine, else `ssh:<instance>:<port>`; jobs have their ports published on
    the loopback of their host."""
    if instance.agent_socket is not None:
        return f"{instance.hostname}:{port}"
    return f"{TUNNELLED}{instance_id}:{port}"


def parse_remote(address: str) -> RemotePort | None:
    """None: it is on this machine."""
    if not address.startswith(TUNNELLED):
        return None
    instance_id, _, port = address.removeprefix(TUNNELLED).partition(":")
    return RemotePort(UUID(instance_id), int(port))


class ReplicaDialer:
    """`hosts`: None where all replicas are on this machine."""

    def __init__(self, hosts: SSHHosts | None = None) -> None:
        self._hosts = hosts

    async def connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises OSError."""
        remote = parse_remote(address)
        if remote is not None:
            return await self._connect_remote(remote)
        if address.startswith("unix:"):
            return await asyncio.open_unix_connection(address.removeprefix("unix:"), limit=MAX_HEAD_BYTES)
        host, _, port = address.rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port), limit=MAX_HEAD_BYTES)

    async def _connect_remote(self, remote: RemotePort) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Over the one connection that the server has to that host anyway."""
        if self._hosts is None:
            raise ConnectionRefusedError("There is no way to replicas on other machines")
        reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport = await self._hosts.dial_port(remote.instance_id, remote.port, protocol)
        except HostError as error:
            raise ConnectionRefusedError(str(error)) from error
        return reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())

"""The clients of all agents: one a host, made at first use, with connections that are shared."""

from __future__ import annotations

from dstack.backends.base import InstanceAddress
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentClient


class Agents:
    """`await close()` lets go of all connections."""

    def __init__(self) -> None:
        self._clients: dict[str, AgentClient] = {}

    def client(self, address: InstanceAddress) -> AgentClient:
        """Raises Unreachable for a host that this server has no way to."""
        if address.agent_socket is None:
            raise Unreachable(f"The agent on {address.hostname} has no socket on this machine")
        client = self._clients.get(address.agent_socket)
        if client is None:
            client = self._clients[address.agent_socket] = AgentClient.on_socket(address.agent_socket)
        return client

    async def close(self) -> None:
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.close()

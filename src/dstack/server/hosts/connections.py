"""Clients of agents by address, shared by all who talk to the same host."""

from __future__ import annotations

import json
from dataclasses import asdict

from dstack.backends.base import InstanceAddress
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentClient


def dump_address(address: InstanceAddress) -> str:
    """The JSON text that is stored with an instance."""
    return json.dumps(asdict(address), sort_keys=True)


def parse_address(text: str) -> InstanceAddress:
    """The reverse of `dump_address`."""
    return InstanceAddress(**json.loads(text))


class Agents:
    """One client per agent; `close` ends them all."""

    def __init__(self) -> None:
        self._clients: dict[str, AgentClient] = {}

    def client(self, address: InstanceAddress) -> AgentClient:
        """Raises Unreachable for an address that leads nowhere."""
        if address.agent_socket is None:
            raise Unreachable(f"There is no way to the agent of {address.hostname}")
        known = self._clients.get(address.agent_socket)
        if known is None:
            known = self._clients[address.agent_socket] = AgentClient.on_socket(address.agent_socket)
        return known

    async def close(self) -> None:
        """Ends all connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

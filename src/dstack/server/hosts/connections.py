"""Clients of agents by address, shared by all who talk to the same host."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict

from dstack.backends.base import InstanceAddress
from dstack.core.errors import Unreachable
from dstack.server.hosts.agent_client import AgentClient
from dstack.server.hosts.ssh.hosts import SSHHosts


def dump_address(address: InstanceAddress) -> str:
    """The JSON text that is stored with an instance."""
    return json.dumps(asdict(address), sort_keys=True)


def parse_address(text: str) -> InstanceAddress:
    """The reverse of `dump_address`."""
    return InstanceAddress(**json.loads(text))


class Agents:
    """One client per agent; `close` ends them all. `ssh`: the way to agents that are not on this machine."""

    def __init__(self, ssh: SSHHosts | None = None) -> None:
        self._ssh = ssh
        self._clients: dict[str, AgentClient] = {}

    def client(self, address: InstanceAddress) -> AgentClient:
        """Raises Unreachable for an address that leads nowhere."""
        key = address.agent_socket or f"{address.backend_id} {address.remote_agent_socket}"
        known = self._clients.get(key)
        if known is None:
            known = self._clients[key] = self._make(address)
        return known

    def _make(self, address: InstanceAddress) -> AgentClient:
        if address.agent_socket is not None:
            return AgentClient.on_socket(address.agent_socket)
        if address.remote_agent_socket is None or self._ssh is None:
            raise Unreachable(f"There is no way to the agent of {address.hostname}")
        return AgentClient(functools.partial(self._ssh.open, address), functools.partial(self._ssh.dial, address))

    async def close(self) -> None:
        """Ends all connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

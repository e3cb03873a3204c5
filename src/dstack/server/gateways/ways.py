"""How a gateway reaches the replicas of services, as registrations tell it.

A replica on an SSH host is reached by the gateway itself, with the project's key, which is put on that host for
forwarding alone. One on the server's own machine is reached through the server's connection, by a socket.
"""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import select

from dstack.server.db.engine import Database
from dstack.server.db.tables import ProjectRow
from dstack.server.encryption import Encryption
from dstack.server.gateways.provisioning import RUNTIME_DIR, run
from dstack.server.hosts.replicas import RemotePort, parse_remote
from dstack.server.hosts.ssh import connecting
from dstack.server.hosts.ssh.hosts import PROJECT_KEY_COMMENT, SSHHosts
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

_AUTHORIZE = """\
umask 077; mkdir -p ~/.ssh; touch ~/.ssh/authorized_keys
grep -qF {key} ~/.ssh/authorized_keys || printf '\\n%s\\n' {line} >> ~/.ssh/authorized_keys
"""


class ProjectKeys:
    """Pairs of projects, and the hosts that take them."""

    def __init__(self, database: Database, encryption: Encryption, hosts: SSHHosts) -> None:
        self._database = database
        self._encryption = encryption
        self._hosts = hosts
        self._known: dict[UUID, tuple[str, str]] = {}
        self._authorized: set[tuple[UUID, UUID]] = set()

    async def private(self, project_id: UUID) -> str:
        return (await self._pair(project_id))[0]

    async def _pair(self, project_id: UUID) -> tuple[str, str]:
        if project_id not in self._known:
            columns = (ProjectRow.ssh_private_key, ProjectRow.ssh_public_key)
            async with self._database.session() as session:
                private, public = (
                    await session.execute(select(*columns).where(ProjectRow.id == project_id))
                ).one()
            private = self._encryption.decrypt(private, f"projects.ssh_private_key:{project_id}")
            self._known[project_id] = private, public
        return self._known[project_id]

    async def authorize(self, project_id: UUID, instance_id: UUID) -> SSHTarget:
        """The host, and that before it, let the project's key in for forwarding. Raises HostError."""
        if (project_id, instance_id) not in self._authorized:
            words = (await self._pair(project_id))[1].split()
            line = f"restrict,port-forwarding {words[0]} {words[1]} {PROJECT_KEY_COMMENT}{project_id}"
            script = _AUTHORIZE.format(key=shlex.quote(words[1]), line=shlex.quote(line))
            await self._hosts.run(instance_id, script)
            self._authorized.add((project_id, instance_id))
        return await self._hosts.target(instance_id)


class Forwards:
    """Of one connection to a gateway: sockets there that lead to replicas on the server's own machine."""

    def __init__(self, connection: asyncssh.SSHClientConnection, target: SSHTarget) -> None:
        self._connection = connection
        self._target = target
        self._listeners: dict[str, tuple[str, asyncssh.SSHListener]] = {}
        self._changing = asyncio.Lock()

    async def open(self, job_id: str, address: str) -> str:
        """The socket's path. Raises HostError."""
        path = f"{RUNTIME_DIR}/replica-{job_id}.sock"
        async with self._changing, connecting.translated(self._target):
            known = self._listeners.get(job_id)
            if known is not None and known[0] == address:
                return path
            await run(self._connection, self._target, f"rm -f {path}")
            self._listeners[job_id] = (address, await self._listen(path, address))
            await run(self._connection, self._target, f"chmod 666 {path}")
        return path

    async def _listen(self, path: str, address: str) -> asyncssh.SSHListener:
        if address.startswith("unix:"):
            return await self._connection.forward_remote_path(path, address.removeprefix("unix:"))
        host, _, port = address.rpartition(":")
        return await self._connection.forward_remote_path_to_port(path, host.strip("[]"), int(port))

    async def close_all_but(self, job_ids: set[str]) -> None:
        for job_id in self._listeners.keys() - job_ids:
            self._listeners.pop(job_id)[1].close()
            await run(self._connection, self._target, f"rm -f {RUNTIME_DIR}/replica-{job_id}.sock")


async def way_to(
    project_id: UUID, job_id: str, address: str, keys: ProjectKeys, forwards: Forwards
) -> dict[str, Any]:
    """The fields of the replica's registration that say how it is reached. Raises HostError."""
    remote = parse_remote(address)
    if remote is not None:
        return _through_ssh(remote, await keys.authorize(project_id, remote.instance_id))
    port = address.rpartition(":")[2]
    return {"app_port": int(port) if port.isdigit() else 1, "socket": await forwards.open(job_id, address)}


def _through_ssh(remote: RemotePort, target: SSHTarget) -> dict[str, Any]:
    jump = target.jump
    return {
        "app_port": remote.port,
        "ssh_host": f"{target.username}@{target.hostname}",
        "ssh_port": target.port,
        "host_key": target.host_key,
        "ssh_proxy": None
        if jump is None
        else {
            "hostname": jump.hostname,
            "username": jump.username,
            "port": jump.port,
            "host_key": jump.host_key,
        },
    }

"""What the effects of all kinds may use. Built once, in `server.app`, and handed to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from dstack.agent.protocol import AgentInfo, StopRequest, TaskSpec, TaskState
from dstack.backends.base import Backend, InstanceAddress
from dstack.core.images import Images
from dstack.server.clock import Clock
from dstack.server.db.engine import Database
from dstack.server.encryption import Encryption
from dstack.server.stores.logs.base import LogStore
from dstack.server.wakeups import Wakeups


class Backends(Protocol):
    """The configured backends of all projects."""

    async def get(self, project_id: UUID, type: str) -> Backend:
        """Raises BackendNotAvailable when the project has no such backend."""
        ...

    async def list_of_project(self, project_id: UUID) -> list[Backend]:
        """All that can be used."""
        ...


class Login(Protocol):
    """The part of `hosts.ssh.target.SSHTarget` that may be shown."""

    @property
    def hostname(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def username(self) -> str: ...


class Deployed(Protocol):
    """See `hosts.ssh.deploying.Deployed`."""

    @property
    def target(self) -> Login: ...

    @property
    def agent_socket(self) -> str: ...

    @property
    def docker(self) -> str: ...


class SSHHosts(Protocol):
    """The part of `hosts.ssh.hosts.SSHHosts` that the effects use, by the id of the instance. Raises HostError."""

    async def deploy(self, instance_id: UUID) -> Deployed: ...

    async def remove(self, instance_id: UUID) -> None: ...


class GatewayHosts(Protocol):
    """The part of `gateways.hosts.GatewayHosts` that the effects use, by the id of the gateway's replica. Raises
    HostError."""

    async def install(self, replica_id: UUID) -> str: ...

    async def uninstall(self, replica_id: UUID) -> None: ...


class Agent(Protocol):
    """The part of `hosts.agent_client.AgentClient` that the effects use. Raises HostError, AgentError."""

    async def info(self) -> AgentInfo: ...

    async def put_file(self, task_id: str, name: str, content: bytes) -> None: ...

    async def put_task(self, spec: TaskSpec) -> TaskState: ...

    async def stop_task(self, task_id: str, request: StopRequest) -> TaskState: ...

    async def delete_task(self, task_id: str) -> None: ...


class Agents(Protocol):
    """Clients of agents; making one costs nothing, connections are shared."""

    def client(self, address: InstanceAddress) -> Agent: ...


@dataclass(frozen=True)
class World:
    """The dependencies of effects."""

    database: Database
    wakeups: Wakeups
    backends: Backends
    agents: Agents
    ssh_hosts: SSHHosts
    gateway_hosts: GatewayHosts
    log_store: LogStore
    encryption: Encryption
    images: Images
    clock: Clock

"""What a gateway knows. The field names are those of `state-v2.json` (reference/proxy.md, section 4)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dstack.core.configurations.service import ChatModel, RateLimit

Port = Annotated[int, Field(ge=1, le=65535)]


class GatewayModel(BaseModel):
    """Keys of later versions are left out."""

    model_config = ConfigDict(extra="ignore")


class SSHProxy(GatewayModel):
    """A host on the way to another."""

    hostname: str
    username: str
    port: int = 22
    host_key: str | None = None
    """What it must show, as `ssh-ed25519 AAAA…`."""


class ReplicaPlace(GatewayModel):
    """Reached through SSH, or through a socket that the server keeps.

    `app_host`, `host_key` and `socket` are additions to the reference.
    """

    app_port: Port
    app_host: Annotated[str, Field(pattern=r"^[a-zA-Z0-9:.-]+$")] = "localhost"
    """As seen from the SSH server."""
    ssh_port: Port = 22
    host_key: str | None = None
    ssh_proxy: SSHProxy | None = None
    ssh_proxy_private_key: str | None = None
    ssh_head_proxy: SSHProxy | None = None
    ssh_head_proxy_private_key: str | None = None
    internal_ip: str | None = None
    socket: Annotated[str, Field(pattern=r"^/[a-zA-Z0-9_./-]+$")] | None = None
    """Of a replica to which the server itself keeps a way; then there is no tunnel from here."""


class Replica(ReplicaPlace):
    """One that takes traffic."""

    id: str
    """Of the job."""
    ssh_destination: str = ""
    """`user@host`."""


class Service(GatewayModel):
    """A published run."""

    id: str
    project_name: str
    run_name: str
    domain: str
    https: bool
    rate_limits: tuple[RateLimit, ...] = ()
    auth: bool = True
    client_max_body_size: int = 0
    """Bytes; 0: no limit."""
    strip_prefix: bool = True
    replicas: tuple[Replica, ...] = ()
    has_router_replica: bool = False
    cors_enabled: bool = False
    proxy_buffering: bool = False
    read_timeout: int = 300
    """Seconds without a byte of a replica's answer."""


class ModelEntry(GatewayModel):
    """A model of the OpenAI-compatible API."""

    project_name: str
    name: str
    created_at: float
    """Seconds since 1970."""
    run_name: str
    format_spec: ChatModel


class Entrypoint(GatewayModel):
    """Where the models of a project are."""

    project_name: str
    domain: str
    https: bool
    read_timeout: int = 300


class Project(GatewayModel):
    """The key opens the hosts of its replicas."""

    name: str
    ssh_private_key: str = Field(repr=False)


class ACMESettings(GatewayModel):
    """The certificate authority; all None: Let's Encrypt."""

    server: str | None = None
    """URL of its directory."""
    eab_kid: str | None = None
    eab_hmac_key: str | None = Field(default=None, repr=False)


class Config(GatewayModel):
    acme_settings: ACMESettings = ACMESettings()


class GatewayState(GatewayModel):
    """All of it. Projects, runs and models are keyed by name."""

    version: Literal[2] = 2
    services: dict[str, dict[str, Service]] = {}
    models: dict[str, dict[str, ModelEntry]] = {}
    entrypoints: dict[str, Entrypoint] = {}
    projects: dict[str, Project] = {}
    config: Config = Config()

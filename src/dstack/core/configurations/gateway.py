"""Gateways: publish services under domain names of your own."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from dstack.core.backends import BackendType
from dstack.core.configurations.fleet import SSHParams
from dstack.core.configurations.profiles import Tags
from dstack.core.models import CoreModel


class ALBGatewayLoadBalancer(CoreModel):
    """An AWS application load balancer in front of the gateway."""

    type: Literal["alb"] = "alb"


class LetsEncryptGatewayCertificate(CoreModel):
    """Certificates are obtained by the gateway itself."""

    type: Literal["lets-encrypt"] = "lets-encrypt"


class ACMGatewayCertificate(CoreModel):
    """A certificate kept by AWS."""

    type: Literal["acm"] = "acm"
    arn: str
    """Of the certificate."""


class GCPCertificateManagerGatewayCertificate(CoreModel):
    """A certificate kept by Google Cloud."""

    type: Literal["gcp-cm"] = "gcp-cm"
    name: str
    """Of the certificate."""


GatewayCertificate = Annotated[
    LetsEncryptGatewayCertificate | ACMGatewayCertificate | GCPCertificateManagerGatewayCertificate,
    Field(discriminator="type"),
]


SSH_BACKEND = "ssh"
"""What files call hosts that are there already; the wire calls them `remote`, as it does those of SSH fleets."""


def _expand_backend(value: Any) -> Any:
    return BackendType.REMOTE if value == SSH_BACKEND else value


def _is_none(value: Any) -> bool:
    return value is None


class GatewayConfiguration(CoreModel):
    """`type: gateway`."""

    type: Literal["gateway"] = "gateway"
    """Which kind of configuration this is."""
    name: str | None = None
    """Name of the gateway; one is made up where it is left out."""
    default: bool | None = None
    """Services of the project use it; true for the first one."""
    backend: Annotated[BackendType, BeforeValidator(_expand_backend)]
    """Where it is made; `ssh`: on the hosts of `ssh_config`."""
    region: str
    """Where it is made; not with `backend: ssh`."""
    ssh_config: SSHParams | None = Field(default=None, exclude_if=_is_none)
    """With `backend: ssh`: hosts that are there already, each of which carries the gateway."""
    instance_type: Annotated[str, Field(min_length=1)] | None = None
    """By default a small one."""
    domain: str | None = None
    """Services are `NAME.DOMAIN`."""
    public_ip: bool = True
    """Reachable from the internet."""
    load_balancer: ALBGatewayLoadBalancer | None = None
    """In front of it."""
    certificate: GatewayCertificate | None = Field(default_factory=LetsEncryptGatewayCertificate)
    """Where certificates come from; null for HTTP."""
    replicas: Annotated[int, Field(ge=1)] | None = None
    """How many machines carry it; 1 by default."""
    tags: Tags | None = None
    """Labels for the cloud's bill."""

    @model_validator(mode="before")
    @classmethod
    def _fill_region(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("backend") in (SSH_BACKEND, BackendType.REMOTE.value):
            value = {**value, "region": value.get("region") or BackendType.REMOTE.value}
        return value

    @model_validator(mode="after")
    def _check_ssh(self) -> Self:
        if (self.backend is BackendType.REMOTE) != (self.ssh_config is not None):
            raise ValueError("'backend: ssh' and 'ssh_config' belong together: give both or none")
        if self.ssh_config is not None and self.replicas not in (None, len(self.ssh_config.hosts)):
            raise ValueError("each host of 'ssh_config' carries the gateway: leave out 'replicas'")
        return self

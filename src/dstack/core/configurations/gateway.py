"""Gateways: publish services under domain names of your own."""

from typing import Annotated, Literal

from pydantic import Field

from dstack.core.backends import BackendType
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


class GatewayConfiguration(CoreModel):
    """`type: gateway`."""

    type: Literal["gateway"] = "gateway"
    """Which kind of configuration this is."""
    name: str | None = None
    """Name of the gateway; one is made up where it is left out."""
    default: bool | None = None
    """Services of the project use it; true for the first one."""
    backend: BackendType
    """Where it is made."""
    region: str
    """Where it is made."""
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

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


class GCPCertificateManagerGatewayCertificate(CoreModel):
    """A certificate kept by Google Cloud."""

    type: Literal["gcp-cm"] = "gcp-cm"
    name: str


GatewayCertificate = Annotated[
    LetsEncryptGatewayCertificate | ACMGatewayCertificate | GCPCertificateManagerGatewayCertificate,
    Field(discriminator="type"),
]


class GatewayConfiguration(CoreModel):
    """`type: gateway`."""

    type: Literal["gateway"] = "gateway"
    name: str | None = None
    default: bool | None = None
    backend: BackendType
    region: str
    instance_type: Annotated[str, Field(min_length=1)] | None = None
    domain: str | None = None
    public_ip: bool = True
    load_balancer: ALBGatewayLoadBalancer | None = None
    certificate: GatewayCertificate | None = Field(default_factory=LetsEncryptGatewayCertificate)
    replicas: Annotated[int, Field(ge=1)] | None = None
    tags: Tags | None = None

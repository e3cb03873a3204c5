"""`/api/project/{project_name}/gateways`."""

from __future__ import annotations

from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.gateways import Gateway, GatewaySpec
from dstack.core.models import CoreModel


class ListGatewaysRequest(CoreModel):
    """The gateways of a project."""

    include_imported: bool = False


class GetGatewayRequest(CoreModel):
    """A gateway by name."""

    name: str


class GetGatewayPlanRequest(CoreModel):
    """What would applying this do?"""

    spec: GatewaySpec


class ApplyGatewayPlanInput(CoreModel):
    """What to apply, and what it was planned against."""

    spec: GatewaySpec
    current_resource: Gateway | None = None


class ApplyGatewayPlanRequest(CoreModel):
    """`force`: apply even if the gateway has changed since."""

    plan: ApplyGatewayPlanInput
    force: bool


class CreateGatewayRequest(CoreModel):
    """A new gateway."""

    configuration: GatewayConfiguration


class DeleteGatewaysRequest(CoreModel):
    """Gateways by name."""

    names: list[str]


class SetDefaultGatewayRequest(CoreModel):
    """The gateway that services use by default."""

    name: str
    gateway_project: str | None = None


class SetWildcardDomainRequest(CoreModel):
    """The domain under which services are published."""

    name: str
    wildcard_domain: str

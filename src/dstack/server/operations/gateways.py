"""Gateways of a project. None of the backends of this server makes gateways, so there never are any."""

from __future__ import annotations

from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.errors import BackendNotAvailable, InvalidRequest, ResourceNotExists
from dstack.core.gateways import Gateway, GatewayPlan, GatewaySpec
from dstack.core.names import check_resource_name
from dstack.core.plans import ApplyAction
from dstack.server.operations.context import InProject


def get_gateway(at: InProject, name: str) -> Gateway:
    """Raises ResourceNotExists."""
    raise ResourceNotExists(f"Gateway {name!r} does not exist in project {at.project.name!r}")


def get_plan(at: InProject, spec: GatewaySpec) -> GatewayPlan:
    """What applying would do; whether the backend can is only said when it is applied, as in the reference."""
    _check_name(spec.configuration)
    return GatewayPlan(
        project_name=at.project.name,
        user=at.caller.username,
        spec=spec,
        effective_spec=spec,
        current_resource=None,
        action=ApplyAction.CREATE,
    )


def create_gateway(at: InProject, configuration: GatewayConfiguration) -> Gateway:
    """Raises BackendNotAvailable."""
    _check_name(configuration)
    raise BackendNotAvailable(
        f"Project {at.project.name!r} has no backend {configuration.backend.value!r} that makes gateways; "
        "without one, services are published by the server itself"
    )


def _check_name(configuration: GatewayConfiguration) -> None:
    try:
        if configuration.name is not None:
            check_resource_name(configuration.name, "gateway")
    except ValueError as error:
        raise InvalidRequest(str(error)) from None

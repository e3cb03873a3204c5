"""Which gateway publishes a service, and under which address (reference: proxy, section 2)."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.configurations.references import EntityReference
from dstack.core.configurations.service import ServiceConfiguration
from dstack.core.errors import InvalidRequest, ResourceNotExists
from dstack.core.gateways import GatewayStatus
from dstack.core.interpolation import InterpolationError, interpolate
from dstack.server.db.queries import gateways as queries
from dstack.server.db.tables import ProjectRow
from dstack.server.operations.context import InProject
from dstack.server.planning.new_run import OnGateway
from dstack.server.settings import Settings


async def choose(
    session: AsyncSession, at: InProject, configuration: ServiceConfiguration, settings: Settings
) -> OnGateway | None:
    """None: the server publishes it itself. Raises InvalidRequest, ResourceNotExists."""
    row = await _find(session, at, configuration)
    if row is None:
        if settings.forbid_services_without_gateway:
            raise InvalidRequest("This server publishes services through gateways only, and the project has none")
        return None
    name = row["name"]
    if row["status"] != GatewayStatus.RUNNING.value or row["delete_requested"]:
        status = "being deleted" if row["delete_requested"] else row["status"]
        raise InvalidRequest(f"Gateway {name!r} does not run: it is {status}. See `dstack gateway`")
    gateway = GatewayConfiguration.model_validate_json(row["configuration"], extra="ignore")
    if gateway.domain is None:
        raise InvalidRequest(f"Gateway {name!r} has no domain: set `domain` in its configuration and apply it")
    return OnGateway(
        row["id"], _domain(gateway.domain, at.project.name, name), _https(configuration, gateway, name)
    )


async def _find(session: AsyncSession, at: InProject, configuration: ServiceConfiguration) -> RowMapping | None:
    wanted = configuration.gateway
    if wanted is False:
        return None
    rows = await queries.list_of_project(session, at.project.id, with_imported=True)
    if isinstance(wanted, EntityReference):
        owner = wanted.project or at.project.name
        found = next((row for row in rows if (row["project_name"], row["name"]) == (owner, wanted.name)), None)
        if found is None:
            raise ResourceNotExists(f"Gateway {str(wanted)!r} does not exist in project {at.project.name!r}")
        return found
    default = await session.scalar(select(ProjectRow.default_gateway_id).where(ProjectRow.id == at.project.id))
    found = next((row for row in rows if row["id"] == default), None)
    if found is None and wanted is True:
        raise ResourceNotExists(
            f"Project {at.project.name!r} has no default gateway; leave out `gateway`, and the server publishes "
            "the service itself"
        )
    return found


def _domain(domain: str, project_name: str, gateway_name: str) -> str:
    try:
        filled = interpolate(domain.removeprefix("*."), {"run": {"project_name": project_name}})
    except InterpolationError as error:
        raise InvalidRequest(f"The domain of gateway {gateway_name!r} cannot be filled in: {error}") from None
    return filled.lower()


def _https(configuration: ServiceConfiguration, gateway: GatewayConfiguration, name: str) -> bool:
    """Left open, it follows the gateway's certificate."""
    certificate = gateway.certificate
    if configuration.https is True and certificate is None:
        raise InvalidRequest(f"Gateway {name!r} has no certificate: leave out `https: true`")
    if configuration.https is False and certificate is not None and certificate.type != "lets-encrypt":
        raise InvalidRequest(f"The load balancer of gateway {name!r} takes HTTPS only: leave out `https: false`")
    return configuration.https is not False and certificate is not None

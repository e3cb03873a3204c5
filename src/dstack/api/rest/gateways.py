"""Gateways: `/api/project/{project}/gateways/*`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstack.api.rest.connection import Connection

Document = dict[str, Any]
Documents = list[Document]


class GatewaysApi:
    """Calls about gateways; a gateway is the API's JSON object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, project: str, *, include_imported: bool = True) -> Documents:
        """The gateways of a project and those imported into it."""
        body = {"include_imported": include_imported}
        gateways: Documents = self._connection.post(f"/api/project/{project}/gateways/list", body)
        return gateways

    def get(self, project: str, name: str) -> Document:
        """The gateway of that name. Raises `ResourceNotExists`."""
        gateway: Document = self._connection.post(f"/api/project/{project}/gateways/get", {"name": name})
        return gateway

    def get_plan(self, project: str, spec: Document) -> Document:
        """What applying the spec would do."""
        plan: Document = self._connection.post(f"/api/project/{project}/gateways/get_plan", {"spec": spec})
        return plan

    def apply(
        self, project: str, spec: Document, current_resource: Document | None, *, force: bool = False
    ) -> Document:
        """Creates or updates a gateway. `current_resource` is the gateway as the plan showed it."""
        plan = {"spec": spec, "current_resource": current_resource}
        gateway: Document = self._connection.post(
            f"/api/project/{project}/gateways/apply", {"plan": plan, "force": force}
        )
        return gateway

    def create(self, project: str, configuration: Document) -> Document:
        """Creates a gateway without a plan. Raises `ResourceExists`."""
        body = {"configuration": configuration}
        gateway: Document = self._connection.post(f"/api/project/{project}/gateways/create", body)
        return gateway

    def delete(self, project: str, names: Sequence[str]) -> None:
        """Ends gateways."""
        self._connection.post(f"/api/project/{project}/gateways/delete", {"names": [*names]})

    def set_default(self, project: str, name: str, *, gateway_project: str | None = None) -> None:
        """Makes it the gateway of services that name none; of another project where it is imported from one."""
        body = {"name": name} if gateway_project is None else {"name": name, "gateway_project": gateway_project}
        self._connection.post(f"/api/project/{project}/gateways/set_default", body)

    def set_wildcard_domain(self, project: str, name: str, wildcard_domain: str) -> Document:
        """Sets the domain under which services are published."""
        body = {"name": name, "wildcard_domain": wildcard_domain}
        gateway: Document = self._connection.post(f"/api/project/{project}/gateways/set_wildcard_domain", body)
        return gateway

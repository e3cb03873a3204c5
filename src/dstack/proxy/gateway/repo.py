"""The shared proxy library's view of what the gateway knows."""

from __future__ import annotations

from dstack.core.configurations.service import OpenAIChatModel
from dstack.proxy.gateway.models import ModelEntry
from dstack.proxy.gateway.models import Service as GatewayService
from dstack.proxy.gateway.registry import Registry
from dstack.proxy.gateway.settings import GatewaySettings
from dstack.proxy.repo import Model, Service


class GatewayRepo:
    """A `ProxyRepo` and `ModelRepo`. Services are reached through nginx, so that their requests are in its log."""

    def __init__(self, registry: Registry, settings: GatewaySettings) -> None:
        self._registry = registry
        self._internal = f"unix:{settings.internal_socket}"

    def find_service(self, project: str, run: str) -> Service | None:
        service = self._registry.find_service(project, run)
        return None if service is None else self._service(service)

    def list_models(self, project: str) -> tuple[Model, ...]:
        entries = self._registry.list_models(project)
        services = [(entry, self._registry.find_service(project, entry.run_name)) for entry in entries]
        return tuple(self._model(entry, service) for entry, service in services if service is not None)

    def _service(self, service: GatewayService) -> Service:
        return Service(service.id, service.project_name, service.run_name, False, True, (self._internal,))

    def _model(self, entry: ModelEntry, service: GatewayService) -> Model:
        spec, host = entry.format_spec, service.domain.encode()
        view = self._service(service)
        if isinstance(spec, OpenAIChatModel):
            return Model(entry.name, int(entry.created_at), view, prefix=spec.prefix, host=host)
        return Model(
            entry.name,
            int(entry.created_at),
            view,
            chat_template=spec.chat_template,
            eos_token=spec.eos_token,
            host=host,
        )

"""What is published, and how it comes and goes. When a change returns, nginx has it and the state file too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from dstack.proxy.gateway import state as states
from dstack.proxy.gateway.certificates import Certificates
from dstack.proxy.gateway.errors import GatewayError
from dstack.proxy.gateway.models import (
    ACMESettings,
    Entrypoint,
    GatewayState,
    ModelEntry,
    Project,
    Replica,
    Service,
)
from dstack.proxy.gateway.nginx import Nginx
from dstack.proxy.gateway.replicas import ReplicaSockets
from dstack.proxy.gateway.settings import GatewaySettings
from dstack.proxy.gateway.sites import COMMON_FILE, common, entrypoint_site, file_of, service_site

T = TypeVar("T")


class Registry:
    def __init__(
        self, settings: GatewaySettings, nginx: Nginx, certificates: Certificates, sockets: ReplicaSockets
    ) -> None:
        self._settings = settings
        self._nginx = nginx
        self._certificates = certificates
        self._sockets = sockets
        self._changing: dict[str, asyncio.Lock] = {}
        self.state = states.load(settings.state_file)

    async def restore(self) -> None:
        """At start: nginx and the ways to replicas as the state says. Raises GatewayError."""
        for service in self.list_services():
            for replica in service.replicas:
                self._sockets.open_later(replica, self._key(service.project_name))
        files = {COMMON_FILE: common(self._settings)}
        files |= {file_of(service.domain): self._site(service) for service in self.list_services()}
        files |= {file_of(entry.domain): entrypoint_site(self._settings, entry) for entry in self._entrypoints()}
        await self._nginx.put_all(files)

    def list_services(self) -> list[Service]:
        return [service for runs in self.state.services.values() for service in runs.values()]

    def find_service(self, project: str, run: str) -> Service | None:
        return self.state.services.get(project, {}).get(run)

    def list_models(self, project: str) -> list[ModelEntry]:
        return list(self.state.models.get(project, {}).values())

    async def configure(self, acme: ACMESettings) -> None:
        self._save(
            self.state.model_copy(update={"config": self.state.config.model_copy(update={"acme_settings": acme})})
        )

    async def register(self, service: Service, project: Project, models: Iterable[ModelEntry]) -> None:
        """Repeating it changes what differs. Raises GatewayError: name or domain is taken, or no certificate."""
        async with self._lock(service):
            known = self.find_service(service.project_name, service.run_name)
            if known is not None and known.id != service.id:
                raise GatewayError(f"Service {_name(service)} is registered for another run already")
            self._check_domain(service.domain, service)
            if known is not None:
                service = service.model_copy(update={"replicas": known.replicas})
            if service.https:
                await self._certificates.obtain(service.domain, self.state.config.acme_settings)
            if known is not None and known.domain != service.domain:
                await self._nginx.remove(file_of(known.domain))
            await self._nginx.put(file_of(service.domain), self._site(service))
            kept = [
                model for model in self.list_models(service.project_name) if model.run_name != service.run_name
            ]
            by_name = {model.name: model for model in [*kept, *models]}
            self._save(
                self._with_service(service).model_copy(
                    update={
                        "projects": {**self.state.projects, project.name: project},
                        "models": {**self.state.models, project.name: by_name},
                    }
                )
            )

    async def set_id(self, project: str, run: str, run_id: str) -> None:
        """Of the run that the service belongs to from now on. Raises GatewayError: not registered."""
        async with self._lock_of(project, run):
            await self._change(self._known(project, run).model_copy(update={"id": run_id}))

    async def unregister(self, project: str, run: str) -> None:
        """Nothing of it is left. Raises GatewayError: not registered."""
        async with self._lock_of(project, run):
            service = self._known(project, run)
            await self._nginx.remove(file_of(service.domain))
            for replica in service.replicas:
                await self._sockets.close(replica)
            runs = {name: other for name, other in self.state.services[project].items() if name != run}
            models = {model.name: model for model in self.list_models(project) if model.run_name != run}
            self._save(
                self.state.model_copy(
                    update={
                        "services": _with(self.state.services, project, runs),
                        "models": _with(self.state.models, project, models),
                    }
                )
            )

    async def register_replica(self, project: str, run: str, replica: Replica) -> None:
        """It takes traffic once there is a way to it. Raises GatewayError: no service, known already, no way."""
        async with self._lock_of(project, run):
            service = self._known(project, run)
            if any(known.id == replica.id for known in service.replicas):
                raise GatewayError(f"Replica {replica.id} of {_name(service)} is registered already")
            await self._sockets.open(replica, self._key(project))
            try:
                await self._change(service.model_copy(update={"replicas": (*service.replicas, replica)}))
            except GatewayError:
                await self._sockets.close(replica)
                raise

    async def unregister_replica(self, project: str, run: str, replica_id: str) -> None:
        """New requests go elsewhere; those at work go on. Raises GatewayError: not registered."""
        async with self._lock_of(project, run):
            service = self._known(project, run)
            gone = next((replica for replica in service.replicas if replica.id == replica_id), None)
            if gone is None:
                raise GatewayError(f"Replica {replica_id} of {_name(service)} is not registered")
            left = tuple(replica for replica in service.replicas if replica.id != replica_id)
            await self._change(service.model_copy(update={"replicas": left}))
            await self._sockets.close(gone)

    async def register_entrypoint(self, entrypoint: Entrypoint) -> None:
        """Repeating it is fine. Raises GatewayError: the domain is taken, or no certificate."""
        async with self._lock_of(entrypoint.project_name, ""):
            self._check_domain(entrypoint.domain, entrypoint)
            if entrypoint.https:
                await self._certificates.obtain(entrypoint.domain, self.state.config.acme_settings)
            await self._nginx.put(file_of(entrypoint.domain), entrypoint_site(self._settings, entrypoint))
            known = self.state.entrypoints.get(entrypoint.project_name)
            entrypoints = {**self.state.entrypoints, entrypoint.project_name: entrypoint}
            self._save(self.state.model_copy(update={"entrypoints": entrypoints}))
            if known is not None and known.domain != entrypoint.domain:
                await self._nginx.remove(file_of(known.domain))

    async def _change(self, service: Service) -> None:
        await self._nginx.put(file_of(service.domain), self._site(service))
        self._save(self._with_service(service))

    def _with_service(self, service: Service) -> GatewayState:
        runs = {**self.state.services.get(service.project_name, {}), service.run_name: service}
        return self.state.model_copy(update={"services": {**self.state.services, service.project_name: runs}})

    def _save(self, state: GatewayState) -> None:
        states.save(self._settings.state_file, state)
        self.state = state

    def _site(self, service: Service) -> str:
        sockets: Mapping[str, Path] = {replica.id: self._sockets.path(replica) for replica in service.replicas}
        return service_site(self._settings, service, sockets)

    def _known(self, project: str, run: str) -> Service:
        service = self.find_service(project, run)
        if service is None:
            raise GatewayError(f"Service {project}/{run} is not registered")
        return service

    def _key(self, project: str) -> str:
        return self.state.projects[project].ssh_private_key

    def _entrypoints(self) -> list[Entrypoint]:
        return list(self.state.entrypoints.values())

    def _check_domain(self, domain: str, owner: Service | Entrypoint) -> None:
        known: list[Service | Entrypoint] = [*self.list_services(), *self._entrypoints()]
        for other in known:
            is_same = type(other) is type(owner) and _name(other) == _name(owner)
            if other.domain == domain and not is_same:
                raise GatewayError(f"Domain {domain} belongs to {_name(other)} already")

    def _lock(self, service: Service) -> asyncio.Lock:
        return self._lock_of(service.project_name, service.run_name)

    def _lock_of(self, project: str, run: str) -> asyncio.Lock:
        return self._changing.setdefault(f"{project}/{run}", asyncio.Lock())


def _name(owner: Service | Entrypoint) -> str:
    if isinstance(owner, Service):
        return f"{owner.project_name}/{owner.run_name}"
    return f"the models of {owner.project_name}"


def _with(all_of: dict[str, dict[str, T]], project: str, items: dict[str, T]) -> dict[str, dict[str, T]]:
    """With the project's items, or without the project when it has none left."""
    others = {name: known for name, known in all_of.items() if name != project}
    return {**others, project: items} if items else others

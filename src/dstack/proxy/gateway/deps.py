"""The injector: what the app's operations work with, kept in the application's state."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI, Request

from dstack.proxy.gateway.access_log import AccessLog
from dstack.proxy.gateway.authorize import GatewayAuth, ServerConnections
from dstack.proxy.gateway.certificates import Certificates
from dstack.proxy.gateway.known_tokens import KnownTokens
from dstack.proxy.gateway.nginx import Nginx
from dstack.proxy.gateway.registry import Registry
from dstack.proxy.gateway.replicas import ReplicaSockets
from dstack.proxy.gateway.repo import GatewayRepo
from dstack.proxy.gateway.settings import GatewaySettings


@dataclass(frozen=True)
class GatewayInjector:
    """The gateway's implementations, built in one place."""

    settings: GatewaySettings
    nginx: Nginx
    sockets: ReplicaSockets
    registry: Registry
    repo: GatewayRepo
    connections: ServerConnections
    known_tokens: KnownTokens
    auth: GatewayAuth
    access_log: AccessLog


def make_injector(settings: GatewaySettings) -> GatewayInjector:
    """Needs a running event loop."""
    nginx, sockets = Nginx(settings), ReplicaSockets(settings)
    registry = Registry(settings, nginx, Certificates(settings), sockets)
    connections = ServerConnections(settings.server_connections)
    known_tokens = KnownTokens(settings.known_tokens)
    return GatewayInjector(
        settings=settings,
        nginx=nginx,
        sockets=sockets,
        registry=registry,
        repo=GatewayRepo(registry, settings),
        connections=connections,
        known_tokens=known_tokens,
        auth=GatewayAuth(connections, known_tokens),
        access_log=AccessLog(settings.access_log),
    )


def set_injector(app: FastAPI, injector: GatewayInjector) -> None:
    app.state.injector = injector


def get_injector(request: Request) -> GatewayInjector:
    injector: GatewayInjector = request.app.state.injector
    return injector


def get_registry(request: Request) -> Registry:
    return get_injector(request).registry


def get_gateway_repo(request: Request) -> GatewayRepo:
    return get_injector(request).repo


def get_auth(request: Request) -> GatewayAuth:
    return get_injector(request).auth


def get_nginx(request: Request) -> Nginx:
    return get_injector(request).nginx


def get_access_log(request: Request) -> AccessLog:
    return get_injector(request).access_log

"""The gateway app: built, started and stopped here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from dstack import __version__
from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.gateway import api
from dstack.proxy.gateway.certificates import make_unknown_host_certificate
from dstack.proxy.gateway.deps import GatewayInjector, make_injector, set_injector
from dstack.proxy.gateway.errors import GatewayError
from dstack.proxy.gateway.known_tokens import SLOT_S, KnownTokens
from dstack.proxy.gateway.settings import GatewaySettings
from dstack.proxy.openai.app import ModelsApp
from dstack.proxy.openai.upstream import ServiceUpstream

MODELS = "/api/models/"


def make_app(settings: GatewaySettings) -> FastAPI:
    """What it publishes is restored when it starts."""
    app = FastAPI(title="dstack gateway", version=__version__, lifespan=_lifespan, openapi_url=None)
    app.state.settings = settings
    app.include_router(api.router)
    app.add_exception_handler(GatewayError, _refuse)
    return app


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=400)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: GatewaySettings = app.state.settings
    for folder in (settings.dir, settings.server_connections, settings.replica_sockets):
        folder.mkdir(parents=True, exist_ok=True)
    await make_unknown_host_certificate(settings)
    injector = make_injector(settings)
    set_injector(app, injector)
    dependencies = ProxyDependencies(repo=injector.repo, auth=injector.auth)
    models = ModelsApp(
        injector.repo, injector.auth, ServiceUpstream(dependencies), prefix=MODELS, is_trusted=_is_nginx
    )
    app.mount(MODELS.rstrip("/"), models)
    following = asyncio.create_task(injector.access_log.follow())
    cleaning = asyncio.create_task(_clean(injector.known_tokens))
    try:
        await injector.registry.restore()
        yield
    finally:
        await _stop(injector, dependencies, models, following, cleaning)


async def _clean(known_tokens: KnownTokens) -> None:
    while True:
        await asyncio.to_thread(known_tokens.clean)
        await asyncio.sleep(SLOT_S)


def _is_nginx(address: str) -> bool:
    """Whoever reaches the app does so by the loopback, and nginx tells whom it speaks for."""
    return address in ("127.0.0.1", "::1")


async def _stop(
    injector: GatewayInjector, dependencies: ProxyDependencies, models: ModelsApp, *tasks: asyncio.Task[None]
) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await models.close()
    dependencies.pool.close()
    await injector.sockets.stop()
    await injector.connections.close()

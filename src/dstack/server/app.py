"""The one place where the server's objects are built."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dstack import COMPATIBILITY_LEVEL
from dstack.backends.registry import BackendContext
from dstack.core.images import Images
from dstack.server import clock
from dstack.server.access import Access, DefaultPermissions
from dstack.server.api import (
    backends,
    errors,
    event_lists,
    files,
    fleets,
    gateways,
    gpus,
    instances,
    logs,
    metrics,
    projects,
    public_keys,
    repos,
    runs,
    secrets,
    server_info,
    sharing,
    sshproxy,
    templates,
    tokens,
    users,
    volumes,
)
from dstack.server.api.versions import VersionCheck
from dstack.server.configured_backends import ConfiguredBackends
from dstack.server.db.engine import Database
from dstack.server.encryption import Encryption
from dstack.server.gateways.hosts import GatewayHosts
from dstack.server.gateways.keeping import AuthorityTerms, Keeping
from dstack.server.gateways.pool import GatewayPool
from dstack.server.gateways.wanted import Terms
from dstack.server.gateways.ways import ProjectKeys
from dstack.server.hosts.activity import Activity
from dstack.server.hosts.connections import Agents
from dstack.server.hosts.metrics import MetricsCollector, TimeToLive
from dstack.server.hosts.pool import WatcherPool
from dstack.server.hosts.probes import Prober
from dstack.server.hosts.replicas import ReplicaDialer
from dstack.server.hosts.ssh.hosts import SSHHosts
from dstack.server.hosts.watcher import WatchContext
from dstack.server.operations.context import Context
from dstack.server.operations.own_users import OwnUsers
from dstack.server.orchestrator.engine import Engine
from dstack.server.orchestrator.kinds import kinds
from dstack.server.orchestrator.world import World
from dstack.server.settings import ANY_ADDRESS, Settings
from dstack.server.ssh_door.door import SshDoor
from dstack.server.stores.logs.base import Frame, LogKey, LogStore
from dstack.server.stores.logs.files import FileLogStore

logger = logging.getLogger(__name__)

ROUTERS = (
    server_info.router,
    users.router,
    tokens.router,
    projects.router,
    secrets.router,
    repos.router,
    files.router,
    event_lists.router,
    runs.router,
    logs.router,
    metrics.router,
    fleets.router,
    instances.router,
    gpus.router,
    backends.router,
    sharing.router,
    public_keys.router,
    volumes.router,
    gateways.router,
    templates.router,
    sshproxy.router,
)


@asynccontextmanager
async def running(
    settings: Settings, database: Database, encryption: Encryption, permissions: DefaultPermissions
) -> AsyncIterator[FastAPI]:
    """The application, answering and working until the block ends."""
    access = Access(database)
    log_store = FileLogStore(settings.logs_dir)
    configured = ConfiguredBackends(database, encryption, BackendContext(settings.hosts_dir))
    context = Context(
        settings=settings,
        database=database,
        encryption=encryption,
        access=access,
        logs=log_store,
        backends=configured,
        own_users=OwnUsers(database.wakeups),
        permissions=permissions,
        activity=Activity(database, clock.now),
    )
    context.activity.start()
    ssh_hosts = SSHHosts(
        database,
        encryption,
        settings.hosts_dir,
        connect_seconds=settings.ssh_connect_seconds,
        is_pooled=not settings.ssh_pool_disabled,
    )
    agents = Agents(ssh_hosts)
    door = SshDoor(context, agents)
    try:
        await door.prepare()
        if settings.background_disabled:
            yield build(context, door, ssh_hosts)
        else:
            ttl = TimeToLive(
                settings.metrics_running_ttl, settings.metrics_finished_ttl, settings.instance_health_ttl
            )
            gateways = _keeping(settings, database, encryption, ssh_hosts)
            async with _orchestrating(
                database, encryption, configured, log_store, agents, ssh_hosts, gateways, ttl, settings.images
            ):
                yield build(context, door, ssh_hosts)
    finally:
        context.stopping.set()
        await door.close()
        await context.activity.stop()
        await agents.close()
        await ssh_hosts.close()
        access.close()
        configured.close()
        await log_store.close()


def _keeping(settings: Settings, database: Database, encryption: Encryption, ssh_hosts: SSHHosts) -> Keeping:
    """How this server keeps its gateways."""
    hosts = GatewayHosts(
        database,
        encryption,
        package_url=settings.gateway_package_url,
        updates=not settings.gateway_update_skipped,
        connect_seconds=settings.ssh_connect_seconds,
    )
    return Keeping(
        database=database,
        hosts=hosts,
        keys=ProjectKeys(database, encryption, ssh_hosts),
        server_address=("127.0.0.1" if settings.host in ANY_ADDRESS else settings.host, settings.port),
        terms=Terms(settings.gateway_max_body_size, settings.service_client_timeout),
        authority=AuthorityTerms(settings.acme_server, settings.acme_eab_kid, settings.acme_eab_hmac_key),
        now=clock.now,
    )


class _LogSink:
    """The log store as the watchers of hosts see it."""

    def __init__(self, store: LogStore) -> None:
        self._store = store

    async def position(self, project_name: str, run_name: str, job_id: UUID) -> int:
        return await self._store.position(LogKey(project_name, run_name, job_id))

    async def append(
        self, project_name: str, run_name: str, job_id: UUID, frames: Sequence[Frame], end_offset: int
    ) -> None:
        await self._store.append(LogKey(project_name, run_name, job_id), frames, end_offset)


@asynccontextmanager
async def _orchestrating(
    database: Database,
    encryption: Encryption,
    backends: ConfiguredBackends,
    log_store: LogStore,
    agents: Agents,
    ssh_hosts: SSHHosts,
    keeping: Keeping,
    metrics_ttl: TimeToLive,
    images: Images,
) -> AsyncIterator[None]:
    """The loop and the watchers of hosts; agents and their jobs live on when they end."""
    world = World(
        database=database,
        wakeups=database.wakeups,
        backends=backends,
        agents=agents,
        ssh_hosts=ssh_hosts,
        gateway_hosts=keeping.hosts,
        log_store=log_store,
        encryption=encryption,
        images=images,
        clock=clock.now,
    )
    engine = Engine(database, kinds(images), world)
    watching = WatchContext(database, _LogSink(log_store), clock.now, ssh_hosts.archive)
    watchers = WatcherPool(str(uuid4()), agents, watching)
    collector = MetricsCollector(database, agents, watchers.watched, metrics_ttl, clock.now)
    prober = Prober(database, watchers.watched, ReplicaDialer(ssh_hosts))
    gateways = GatewayPool(keeping)
    watchers.start()
    collector.start()
    prober.start()
    gateways.start()
    await engine.start()
    try:
        yield
    finally:
        await gateways.stop()
        await collector.stop()
        await prober.stop()
        await engine.stop()
        await watchers.stop()


def build(context: Context, door: SshDoor, ssh_hosts: SSHHosts) -> FastAPI:
    """Routes and error answers around the parts."""
    app = FastAPI(
        title="dstack",
        version=COMPATIBILITY_LEVEL,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(AnswerMistakes), Middleware(VersionCheck)],
    )
    app.state.context = context
    app.state.ssh_door = door
    app.state.ssh_hosts = ssh_hosts
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.state.routes = api_routes()
    return app


def api_routes() -> list[APIRoute]:
    """All routes of the REST API."""
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


class AnswerMistakes:
    """Middleware: what no handler of errors knows is our mistake: logged whole, answered with 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            await errors.unexpected(scope, error)(scope, receive, send)

"""The server's injector: what `dstack.proxy` works with inside the server."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import REGISTRY

from dstack.proxy.deps import DEFAULT_TIMEOUT, ProxyDependencies, parse_networks
from dstack.proxy.openai.app import ModelsApp
from dstack.proxy.openai.upstream import ServiceUpstream
from dstack.proxy.pool import Pool
from dstack.proxy.stats import ServiceStats
from dstack.proxy.waking import HoldLimits, Waking
from dstack.server import clock
from dstack.server.access import Access, FailedAttempts
from dstack.server.db.engine import Database
from dstack.server.proxy.auth import ServerProxyAuth, members_only
from dstack.server.proxy.loads import LoadReporter
from dstack.server.proxy.metrics import ServiceMetrics
from dstack.server.proxy.repo import ServerProxyRepo
from dstack.server.proxy.tunnels import ReplicaTunnels

DEFAULT_HOLDING = HoldLimits(seconds=300, requests=1000)


@dataclass(frozen=True)
class InServerProxy:
    """What the HTTP server is given, and what reports on it. `start` and `stop` it with the HTTP server."""

    dependencies: ProxyDependencies
    loads: LoadReporter
    models: ModelsApp
    """To be mounted at `/proxy/models`."""
    tunnels: ReplicaTunnels
    metrics: ServiceMetrics

    def start(self) -> None:
        """Needs a running event loop."""
        self.loads.start()
        REGISTRY.register(self.metrics)
        self.tunnels.start(self.dependencies.pool.open_addresses)

    async def stop(self) -> None:
        """Once the HTTP server has stopped."""
        REGISTRY.unregister(self.metrics)
        await self.loads.stop()
        await self.models.close()
        self.dependencies.pool.close()
        await self.tunnels.stop()


def in_server_proxy(
    database: Database,
    access: Access,
    attempts: FailedAttempts,
    tunnels: ReplicaTunnels,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    holding: HoldLimits = DEFAULT_HOLDING,
    max_body_bytes: int = 0,
    trusted_proxies: str = "",
) -> InServerProxy:
    """`attempts` is shared with the REST API; `timeout` in seconds; `max_body_bytes`: 0 for no limit;
    `trusted_proxies`: comma-separated networks.

    Raises `ValueError` for a wrong network.
    """
    repo, stats, pool = ServerProxyRepo(database), ServiceStats(), Pool(timeout=timeout, ways=tunnels)
    loads = LoadReporter(database, stats, pool, clock.now)
    dependencies = ProxyDependencies(
        repo=repo,
        auth=ServerProxyAuth(members_only(access, attempts), database.wakeups),
        stats=stats,
        pool=pool,
        waking=Waking(repo, loads.wake, holding),
        max_body_bytes=max_body_bytes,
        trusted_proxies=parse_networks(trusted_proxies),
    )
    models = ModelsApp(
        repo,
        dependencies.auth,
        ServiceUpstream(dependencies),
        max_body_bytes=max_body_bytes,
        is_trusted=dependencies.is_trusted,
    )
    metrics = ServiceMetrics(stats, lambda: loads.names)
    return InServerProxy(dependencies, loads, models, tunnels, metrics)

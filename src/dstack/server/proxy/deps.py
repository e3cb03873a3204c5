"""The server's injector: what `dstack.proxy` works with inside the server."""

from __future__ import annotations

from dstack.proxy.deps import DEFAULT_TIMEOUT, ProxyDependencies, parse_networks
from dstack.proxy.pool import Pool
from dstack.server.access import Access, FailedAttempts
from dstack.server.db.engine import Database
from dstack.server.proxy.auth import ServerProxyAuth, members_only
from dstack.server.proxy.repo import ServerProxyRepo


def server_dependencies(
    database: Database,
    access: Access,
    attempts: FailedAttempts,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    trusted_proxies: str = "",
) -> ProxyDependencies:
    """`attempts` is shared with the REST API; `timeout` in seconds; `trusted_proxies`: comma-separated networks.

    Raises `ValueError` for a wrong network.
    """
    return ProxyDependencies(
        repo=ServerProxyRepo(database),
        auth=ServerProxyAuth(members_only(access, attempts), database.wakeups),
        pool=Pool(timeout=timeout),
        trusted_proxies=parse_networks(trusted_proxies),
    )

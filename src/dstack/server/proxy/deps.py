"""The server's injector: what `dstack.proxy` works with inside the server."""

from __future__ import annotations

from dstack.proxy.deps import DEFAULT_TIMEOUT, ProxyDependencies, parse_networks
from dstack.proxy.pool import Pool
from dstack.server.access import Access
from dstack.server.db.engine import Database
from dstack.server.proxy.auth import ServerProxyAuth, members_only
from dstack.server.proxy.repo import ServerProxyRepo


def server_dependencies(
    database: Database, access: Access, *, timeout: float = DEFAULT_TIMEOUT, trusted_proxies: str = ""
) -> ProxyDependencies:
    """`timeout` in seconds; `trusted_proxies`: comma-separated networks. Raises `ValueError` for a wrong one."""
    return ProxyDependencies(
        repo=ServerProxyRepo(database),
        auth=ServerProxyAuth(members_only(access), database.wakeups),
        pool=Pool(timeout=timeout),
        trusted_proxies=parse_networks(trusted_proxies),
    )

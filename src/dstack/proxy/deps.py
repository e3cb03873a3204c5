"""The injector: what the proxy needs from the process it runs in."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from dstack.proxy.auth import ProxyAuth
from dstack.proxy.balancer import Balancer
from dstack.proxy.limits import RateLimiter
from dstack.proxy.pool import Pool
from dstack.proxy.repo import ProxyRepo
from dstack.proxy.stats import ServiceStats
from dstack.proxy.waking import Waking

DEFAULT_TIMEOUT = 300.0


@dataclass(frozen=True)
class ProxyDependencies:
    """Which storage repo and which auth provider: the server's or the gateway's."""

    repo: ProxyRepo
    auth: ProxyAuth
    stats: ServiceStats = field(default_factory=ServiceStats)
    pool: Pool = field(default_factory=lambda: Pool(timeout=DEFAULT_TIMEOUT))
    limiter: RateLimiter = field(default_factory=RateLimiter)
    balancer: Balancer = field(default_factory=Balancer)
    waking: Waking | None = None
    """None: services without a replica are not started."""
    max_body_bytes: int = 0
    """Of a request; 0: no limit."""
    client_timeout: float = 60.0
    """Seconds in which a request's head must be whole, and in which a client whose connection ends takes some
    of what is left for it."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Whose `X-Forwarded-*` headers count. Default: nobody's."""

    def is_trusted(self, address: str) -> bool:
        if not self.trusted_proxies:
            return False
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self.trusted_proxies)


def parse_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Comma-separated addresses or networks. Raises `ValueError` naming the wrong one."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())

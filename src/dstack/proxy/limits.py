"""How many requests a client may make: `rate_limits` of a service, as nginx's `limit_req … nodelay` counts.

Each client has an account for each limit: a request adds one, time takes `rps` a second away, and what would
exceed `burst` is refused. Accounts are in memory, of this process alone.
"""

from __future__ import annotations

import math
import posixpath
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from dstack.proxy.affinity import header_key
from dstack.proxy.headers import Hop, RequestHead

MAX_ACCOUNTS = 100_000


@dataclass(frozen=True, slots=True)
class RateLimit:
    """For paths that begin with `prefix`; of several the longest counts."""

    prefix: bytes
    header: bytes | None
    """Lower-case name of the header whose value tells clients apart; None: their address does."""
    rps: float
    burst: int


class RateLimiter:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[tuple[str, bytes, bytes], tuple[float, float]] = {}
        """Excess and when it was counted, least recently used first."""

    def seconds_to_wait(
        self, service_id: str, limits: tuple[RateLimit, ...], path: bytes, request: RequestHead, hop: Hop
    ) -> int:
        """0: the request may pass, and is counted. `path` is relative to the service."""
        limit = _find(limits, path)
        client = None if limit is None else _client(limit, request, hop)
        if limit is None or client is None:
            return 0
        key = (service_id, limit.prefix, client)
        now = self._clock()
        known = self._accounts.pop(key, None)
        rate = round(limit.rps * 60) / 60
        excess = 0.0 if known is None else max(known[0] - rate * (now - known[1]) + 1, 0.0)
        if known is not None and excess > limit.burst:
            self._accounts[key] = known
            return max(math.ceil((excess - limit.burst) / rate), 1)
        if len(self._accounts) >= MAX_ACCOUNTS:
            del self._accounts[next(iter(self._accounts))]
        self._accounts[key] = (excess, now)
        return 0


def _find(limits: tuple[RateLimit, ...], path: bytes) -> RateLimit | None:
    asked = normalized(path)
    return max((limit for limit in limits if asked.startswith(limit.prefix)), key=_length, default=None)


def _length(limit: RateLimit) -> int:
    return len(limit.prefix)


def normalized(target: bytes) -> bytes:
    """The path as a server understands it: decoded, without `.`, `..` and doubled slashes."""
    path = unquote_to_bytes(target.partition(b"?")[0])
    plain = posixpath.normpath(b"/" + path.lstrip(b"/"))
    return plain + b"/" if path.endswith(b"/") and plain != b"/" else plain


def _client(limit: RateLimit, request: RequestHead, hop: Hop) -> bytes | None:
    """What tells the client apart; None: it has no such header, and is not limited."""
    if limit.header is not None:
        return request.host if limit.header == b"host" else header_key(request, limit.header)
    forwarded = (request.forwarding or {}).get(b"x-forwarded-for") if hop.is_trusted else None
    return forwarded.rpartition(b",")[2].strip() if forwarded else hop.address

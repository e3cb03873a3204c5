"""Where one request goes, and where it goes next if it isn't taken there."""

from __future__ import annotations

from dstack.proxy.affinity import cookie_key, header_key, set_cookie
from dstack.proxy.balancer import Balancer
from dstack.proxy.balancing import BySession, Policy, tag
from dstack.proxy.headers import Hop, RequestHead
from dstack.proxy.repo import Service


class Aim:
    """Of one request to a service. `end()` it: until then the request counts as at work at its replica."""

    __slots__ = ("_balancer", "_lease", "_policy", "_replicas", "_tried", "key")

    def __init__(self, balancer: Balancer, service: Service, request: RequestHead) -> None:
        self._balancer = balancer
        self._policy: Policy = service.balancing
        self._replicas = service.replicas
        self._tried: set[str] = set()
        self._lease = ""
        self.key = _session_key(service.balancing, request)
        """What ties the request to a replica."""

    def next_replica(self) -> str | None:
        """None: all were tried."""
        if self._tried.issuperset(self._replicas):
            return None
        chosen = self._balancer.choose(self._policy, self._replicas, self.key, self._tried)
        if self._policy is not None:
            self.end()
            self._balancer.begin(chosen)
            self._lease = chosen
        return chosen

    def missed(self, replica: str) -> None:
        """It takes no connection."""
        self._tried.add(replica)
        self._balancer.failed(replica, is_unreachable=True)

    def end(self) -> None:
        if self._lease:
            self._balancer.end(self._lease)
            self._lease = ""

    def session_line(self, replica: str, prefix: bytes, hop: Hop) -> bytes | None:
        """The cookie that ties the client to the replica, unless it has that."""
        policy = self._policy
        if not isinstance(policy, BySession) or policy.cookie is None or self.key == tag(replica):
            return None
        return set_cookie(policy.cookie, tag(replica), prefix, hop)


def _session_key(policy: Policy, request: RequestHead) -> bytes | None:
    if not isinstance(policy, BySession):
        return None
    if policy.header is not None:
        return header_key(request, policy.header)
    return None if policy.cookie is None else cookie_key(request, policy.cookie)

"""Which replica gets a request: what policies there are, and what they decide. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

Draw = Callable[[Sequence[str]], str]
"""One of several by chance: `random.choice`."""


@dataclass(frozen=True, slots=True)
class LeastRequests:
    """The replica with the fewest requests at work."""


@dataclass(frozen=True, slots=True)
class ByPrefix:
    """Prompts with the same first `length` characters go to one replica, while that has no more than `load_factor`
    times the mean number of requests at work."""

    length: int
    load_factor: float


@dataclass(frozen=True, slots=True)
class BySession:
    """Requests with the same value of a header, or with the cookie that the proxy gave them, go to one replica."""

    header: bytes | None
    """In lower case."""
    cookie: bytes | None


Policy = LeastRequests | ByPrefix | BySession | None
"""None: any replica."""


def choose(
    policy: Policy, replicas: Sequence[str], key: bytes | None, in_flight: Mapping[str, int], draw: Draw
) -> str:
    """One of `replicas` (not empty). `key`: what ties the request to a replica; None: nothing does.

    `in_flight`: the number of requests at work by replica; what is absent has none.
    """
    if policy is None:
        return draw(replicas)
    if key is None or isinstance(policy, LeastRequests):
        return _least_loaded(replicas, in_flight, draw)
    if isinstance(policy, ByPrefix):
        return _bounded(ranked(replicas, key), in_flight, policy.load_factor)
    if policy.cookie is not None:
        tied = [replica for replica in replicas if tag(replica) == key]
        return tied[0] if tied else _least_loaded(replicas, in_flight, draw)
    return ranked(replicas, key)[0]


def _least_loaded(replicas: Sequence[str], in_flight: Mapping[str, int], draw: Draw) -> str:
    least = min(in_flight.get(replica, 0) for replica in replicas)
    return draw([replica for replica in replicas if in_flight.get(replica, 0) == least])


def _bounded(ranked: Sequence[str], in_flight: Mapping[str, int], load_factor: float) -> str:
    """The first below the bound, as in consistent hashing with bounded loads: there always is one, as the bound is
    above the mean."""
    loads = [in_flight.get(replica, 0) for replica in ranked]
    bound = math.ceil(load_factor * (sum(loads) + 1) / len(ranked))
    return next(replica for replica, load in zip(ranked, loads, strict=True) if load < bound)


def ranked(replicas: Collection[str], key: bytes) -> list[str]:
    """By rendezvous hashing: a replica that comes or goes moves only the keys that it gets or had."""
    return sorted(replicas, key=lambda replica: _hash(replica.encode() + b"\0" + key), reverse=True)


def tag(replica: str) -> bytes:
    """What a cookie calls a replica: its address is nobody's business."""
    return _hash(replica.encode()).hex().encode()


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()

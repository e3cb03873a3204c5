"""What is known of replicas for balancing: how many requests they have at work, and which of them fail.

In memory, of this process alone, by address; nothing is kept for a replica that is idle and well.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from dstack.proxy.balancing import Draw, Policy, choose

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
LOST_ANSWERS = 3
"""Requests in a row that a replica takes and does not answer, after which it is left out too."""
MAX_FAILING = 10_000


@dataclass(slots=True)
class _Failing:
    failures: int = 0
    """In a row."""
    pauses: int = 0
    """How often it was left out in a row."""
    until: float = 0.0
    """Left out until then."""


class Balancer:
    """`clock` in seconds; `draw` takes one of several by chance."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, draw: Draw = random.choice) -> None:
        self.in_flight: dict[str, int] = {}
        self.failing: dict[str, _Failing] = {}
        self._clock = clock
        self._draw = draw

    def choose(self, policy: Policy, replicas: Sequence[str], key: bytes | None, tried: Collection[str]) -> str:
        """Of those not tried yet, and of these one that is not left out, unless all are."""
        untried = [replica for replica in replicas if replica not in tried] or replicas
        usable = [replica for replica in untried if not self._is_left_out(replica)] or untried
        chosen = choose(policy, usable, key, self.in_flight, self._draw)
        failing = self.failing.get(chosen)
        if failing is not None and failing.pauses:
            self._pause(failing)  # one request finds out; the others need not
        return chosen

    def begin(self, replica: str) -> None:
        """A request goes to it."""
        self.in_flight[replica] = self.in_flight.get(replica, 0) + 1

    def end(self, replica: str) -> None:
        left = self.in_flight.get(replica, 0) - 1
        if left > 0:
            self.in_flight[replica] = left
        else:
            self.in_flight.pop(replica, None)

    def failed(self, replica: str, *, is_unreachable: bool) -> None:
        """It took no connection, or a request that it did not answer: it is left out for a while, ever longer."""
        failing = self.failing.setdefault(replica, _Failing())
        failing.failures += 1
        if is_unreachable or failing.failures >= LOST_ANSWERS:
            failing.pauses += 1
            self._pause(failing)
        if len(self.failing) > MAX_FAILING:
            del self.failing[next(iter(self.failing))]

    def succeeded(self, replica: str) -> None:
        self.failing.pop(replica, None)

    def _is_left_out(self, replica: str) -> bool:
        failing = self.failing.get(replica)
        return failing is not None and self._clock() < failing.until

    def _pause(self, failing: _Failing) -> None:
        seconds = min(FIRST_PAUSE_SECONDS * 2 ** min(failing.pauses - 1, 10), MAX_PAUSE_SECONDS)
        failing.until = self._clock() + seconds

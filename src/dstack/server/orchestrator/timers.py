"""When keys are to be looked at again: one heap, one timer of the event loop, no task."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from datetime import datetime

from dstack.server.clock import Clock
from dstack.server.orchestrator.decision import Key

LONGEST_SLEEP_S = 60.0
"""The wall clock may be set: look at it at least this often."""


class Timers:
    """At most one time a key; `due` is called with a key when its time has come."""

    def __init__(self, clock: Clock, due: Callable[[Key], None]) -> None:
        self._clock = clock
        self._due = due
        self._times: dict[Key, datetime] = {}
        self._heap: list[tuple[datetime, Key]] = []
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for: datetime | None = None

    def __len__(self) -> int:
        return len(self._times)

    def set(self, key: Key, at: datetime | None) -> None:
        """Replaces the time of the key; None: no time."""
        if at is None:
            self._times.pop(key, None)
            return
        if self._times.get(key) == at:
            return
        self._times[key] = at
        heapq.heappush(self._heap, (at, key))
        if self._armed_for is None or at < self._armed_for:
            self._arm()

    def set_sooner(self, key: Key, at: datetime) -> None:
        """Only if the key has no time, or a later one."""
        before = self._times.get(key)
        if before is None or at < before:
            self.set(key, at)

    def stop(self) -> None:
        self._times.clear()
        self._heap.clear()
        self._arm()

    def fire(self) -> None:
        """Calls `due` for all whose time has come."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._times.get(key) == at:
                del self._times[key]
                self._due(key)
        self._arm()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        self._armed_for = self._heap[0][0] if self._heap else None
        if self._armed_for is not None:
            delay = (self._armed_for - self._clock()).total_seconds()
            delay = min(max(delay, 0.0), LONGEST_SLEEP_S)
            self._handle = asyncio.get_running_loop().call_later(delay, self.fire)

"""Which key is worked on next: highest priority first, then the one that waits longest."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Mapping

from dstack.server.orchestrator.decision import Key, Kind


class WorkQueue:
    """Keys to work on. A key waits at most once and is never given out twice at once: one that is put while
    it is being worked on comes back once, when it is done. `at_most`: how many of a kind are given out at once."""

    def __init__(self, at_most: Mapping[Kind, int] | None = None) -> None:
        self._at_most = at_most or {}
        self._heaps: dict[Kind, list[tuple[int, int, Key]]] = {}
        self._given: Counter[Kind] = Counter()
        self._waiting: dict[Key, tuple[int, int]] = {}
        """(negated priority, age) of each waiting key; entries of the heaps that differ are outdated."""
        self._working: set[Key] = set()
        self._again: dict[Key, int] = {}
        self._ages = itertools.count()
        self._getters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        """How many wait, those that will come back included."""
        return len(self._waiting) + len(self._again)

    @property
    def working(self) -> int:
        return len(self._working)

    def is_working_on(self, key: Key) -> bool:
        """Whether it was given out and is not done yet."""
        return key in self._working

    def put(self, key: Key, priority: int = 0) -> None:
        """A second time changes nothing but, if it is higher, the priority; the age is that of the first."""
        if key in self._working:
            self._again[key] = max(priority, self._again.get(key, priority))
            return
        before = self._waiting.get(key)
        if before is not None and before[0] <= -priority:
            return
        age = next(self._ages) if before is None else before[1]
        self._waiting[key] = (-priority, age)
        heapq.heappush(self._heaps.setdefault(key.kind, []), (-priority, age, key))
        self._rouse()

    async def get(self) -> Key:
        """Waits for one. Who gets a key calls `done` with it."""
        while (key := self.get_nowait()) is None:
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter in self._getters:
                    self._getters.remove(getter)
                elif self._waiting:
                    self._rouse()  # we were roused for a key that somebody else must take now
                raise
        return key

    def get_nowait(self) -> Key | None:
        firsts = [heap[0] for kind, heap in self._heaps.items() if self._may_give(kind) and self._tidied(heap)]
        if not firsts:
            return None
        key = min(firsts)[2]
        heapq.heappop(self._heaps[key.kind])
        del self._waiting[key]
        self._working.add(key)
        self._given[key.kind] += 1
        return key

    def _may_give(self, kind: Kind) -> bool:
        return kind not in self._at_most or self._given[kind] < self._at_most[kind]

    def _tidied(self, heap: list[tuple[int, int, Key]]) -> bool:
        """Drops what is outdated at its top; whether anything is left."""
        while heap and self._waiting.get(heap[0][2]) != heap[0][:2]:
            heapq.heappop(heap)
        return bool(heap)

    def done(self, key: Key) -> None:
        self._working.remove(key)
        self._given[key.kind] -= 1
        priority = self._again.pop(key, None)
        if priority is not None:
            self.put(key, priority)
        elif key.kind in self._at_most and self._waiting:
            self._rouse()  # one that had to wait for its turn may go now

    def _rouse(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

"""Requests to a service that has no replica are held while one is started (better B7)."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dstack.proxy.repo import Service, WatchedRepo

RETRY_AFTER_SECONDS = 10
REMIND_SECONDS = 5.0
"""The wake-up is repeated: it costs little, and the first may have been lost."""


class StillAsleep(Exception):
    """No replica in time, or too many wait already; the text is for the client."""

    def __init__(self, text: str, retry_after_seconds: int = RETRY_AFTER_SECONDS) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class HoldLimits:
    """`seconds` a request is held, `requests` of one service at a time."""

    seconds: float
    requests: int


class Waking:
    """`wake(service_id)` has a replica started."""

    def __init__(self, repo: WatchedRepo, wake: Callable[[str], None], limits: HoldLimits) -> None:
        self._repo = repo
        self._wake = wake
        self._limits = limits
        self._held: Counter[str] = Counter()

    async def until_awake(self, service: Service) -> Service:
        """The service once it has a replica. Raises StillAsleep."""
        if self._held[service.id] >= self._limits.requests:
            raise StillAsleep(f"Service {service.run} is starting, and too many requests wait for it")
        self._held[service.id] += 1
        try:
            return await self._hold(service)
        finally:
            self._held[service.id] -= 1
            if not self._held[service.id]:
                del self._held[service.id]

    async def _hold(self, service: Service) -> Service:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.seconds
        while True:
            change = self._repo.next_change()
            found = self._repo.find_service(service.project, service.run)
            current = found if found is None or isinstance(found, Service) else await found
            if current is None or current.id != service.id or not (current.replicas or current.wakes):
                raise StillAsleep(f"Service {service.run} has ended")
            if current.replicas:
                return current
            left = deadline - loop.time()
            if left <= 0:
                text = f"Service {service.run} was not ready within {math.ceil(self._limits.seconds)} s"
                raise StillAsleep(text)
            self._wake(service.id)
            await asyncio.wait((change,), timeout=min(left, REMIND_SECONDS))

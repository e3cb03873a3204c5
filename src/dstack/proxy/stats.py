"""What happened to the requests of each service: in memory, frames of 1 s, the last 300 kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dstack.proxy import histogram

WINDOWS = (30, 60, 300)
"""In seconds."""


@dataclass
class Counts:
    """Of the requests that ended in some time, by one process or by several together."""

    requests: int = 0
    errors: int = 0
    """Answers with a status of 500 and more, and those that did not come, or not whole."""
    seconds: float = 0.0
    """From the requests' arrival to the end of their answers, in all."""
    answered: int = 0
    waited: float = 0.0
    """Seconds until the answers of the answered ones began, in all."""
    in_flight: int = 0
    """Requests on their way, summed over the looks that were taken, one a second."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    """Buckets of `histogram`: until the end of the answer."""
    first_byte: dict[int, int] = field(default_factory=dict)
    """The same until its beginning."""

    def add(self, more: Counts) -> None:
        self.requests += more.requests
        self.errors += more.errors
        self.seconds += more.seconds
        self.answered += more.answered
        self.waited += more.waited
        self.in_flight += more.in_flight
        self.prompt_tokens += more.prompt_tokens
        self.completion_tokens += more.completion_tokens
        histogram.add(self.latency, more.latency)
        histogram.add(self.first_byte, more.first_byte)

    def dump(self) -> dict[str, Any]:
        """For JSON: what is not zero."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Counts:
        """The reverse of `dump`, once read from JSON."""
        counts = cls(**data)
        counts.latency = {int(bucket): count for bucket, count in counts.latency.items()}
        counts.first_byte = {int(bucket): count for bucket, count in counts.first_byte.items()}
        return counts

    @property
    def request_time(self) -> float:
        """Mean, in seconds, rounded to milliseconds; 0 without requests."""
        return round(self.seconds / self.requests, 3) if self.requests else 0.0


class _Service:
    """`frames`: a second and what was counted in it, oldest first."""

    __slots__ = ("frames", "in_flight", "total")

    def __init__(self) -> None:
        self.frames: deque[tuple[int, Counts]] = deque(maxlen=max(WINDOWS))
        self.in_flight = 0
        self.total = Counts()
        """Since this process has known the service; without histograms and looks."""

    def frame(self, second: int) -> Counts:
        if not self.frames or self.frames[-1][0] != second:
            self.frames.append((second, Counts()))
        return self.frames[-1][1]


class ServiceStats:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        """In seconds, for those who tell `finish` when an answer began."""
        self._services: dict[str, _Service] = {}

    def start(self, service_id: str) -> float:
        """A request is on its way. What is returned goes to `finish`."""
        service = self._services.get(service_id)
        if service is None:
            service = self._services[service_id] = _Service()
        service.in_flight += 1
        return self.now()

    def finish(
        self,
        service_id: str,
        started: float,
        *,
        began: float = 0.0,
        is_error: bool = False,
        tokens: tuple[int, int] | None = None,
    ) -> None:
        """`began`: when its answer began, as `now` tells; 0: there was none. `tokens`: prompt, completion."""
        service = self._services.get(service_id)
        if service is None:
            return
        now = self.now()
        service.in_flight -= 1
        frame, total = service.frame(int(now)), service.total
        took = now - started
        frame.requests += 1
        frame.seconds += took
        total.requests += 1
        total.seconds += took
        bucket = histogram.bucket_of(took)
        frame.latency[bucket] = frame.latency.get(bucket, 0) + 1
        if began:
            waited = began - started
            frame.answered += 1
            frame.waited += waited
            bucket = histogram.bucket_of(waited)
            frame.first_byte[bucket] = frame.first_byte.get(bucket, 0) + 1
        if is_error:
            frame.errors += 1
            total.errors += 1
        if tokens is not None:
            for counts in (frame, total):
                counts.prompt_tokens += tokens[0]
                counts.completion_tokens += tokens[1]

    def look(self) -> None:
        """Once a second: how many requests are on their way."""
        second = int(self.now())
        for service in self._services.values():
            if service.in_flight:
                service.frame(second).in_flight += service.in_flight

    def in_flight(self, service_id: str) -> int:
        service = self._services.get(service_id)
        return 0 if service is None else service.in_flight

    def services(self) -> list[str]:
        """Of which something is remembered."""
        return list(self._services)

    def total(self, service_id: str) -> Counts:
        """Since this process has known the service; requests, errors, seconds and tokens only."""
        service = self._services.get(service_id)
        return Counts() if service is None else service.total

    def windows(self, service_id: str) -> dict[int, Counts]:
        """By window in seconds; zeros for a service without requests."""
        service = self._services.get(service_id)
        frames = [] if service is None else list(service.frames)
        now, counts = int(self.now()), Counts()
        found = {}
        for window in WINDOWS:  # each holds the one before
            while frames and frames[-1][0] > now - window:
                counts.add(frames.pop()[1])
            found[window] = replace(counts, latency=dict(counts.latency), first_byte=dict(counts.first_byte))
        return found

    def forget_all_but(self, service_ids: set[str]) -> None:
        """Drops services that are gone and have nothing in flight."""
        for service_id in [key for key, value in self._services.items() if not value.in_flight]:
            if service_id not in service_ids:
                del self._services[service_id]

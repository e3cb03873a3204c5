"""How many requests each service got, and how long they took: in memory, frames of 1 s, the last 300 kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOWS = (30, 60, 300)
"""In seconds."""


@dataclass(frozen=True)
class WindowStats:
    requests: int
    request_time: float
    """Mean, in seconds, rounded to milliseconds; 0 without requests."""


class _Frames:
    """Frames of one service: (second, requests, seconds in all), oldest first."""

    __slots__ = ("frames", "in_flight")

    def __init__(self) -> None:
        self.frames: deque[list[float]] = deque(maxlen=max(WINDOWS))
        self.in_flight = 0


class ServiceStats:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._services: dict[str, _Frames] = {}

    def start(self, service_id: str) -> float:
        """A request is on its way. What is returned goes to `finish`."""
        frames = self._services.get(service_id)
        if frames is None:
            frames = self._services[service_id] = _Frames()
        frames.in_flight += 1
        return self._clock()

    def finish(self, service_id: str, started: float) -> None:
        service = self._services.get(service_id)
        if service is None:
            return
        now = self._clock()
        second = int(now)
        service.in_flight -= 1
        frames = service.frames
        if frames and frames[-1][0] == second:
            frame = frames[-1]
            frame[1] += 1
            frame[2] += now - started
        else:
            frames.append([second, 1, now - started])

    def in_flight(self, service_id: str) -> int:
        service = self._services.get(service_id)
        return 0 if service is None else service.in_flight

    def services(self) -> list[str]:
        """Of which something is remembered."""
        return list(self._services)

    def windows(self, service_id: str) -> dict[int, WindowStats]:
        """By window in seconds; zeros for a service without requests."""
        return {window: self._window(service_id, window) for window in WINDOWS}

    def _window(self, service_id: str, window: int) -> WindowStats:
        service = self._services.get(service_id)
        since = int(self._clock()) - window
        frames = [frame for frame in service.frames if frame[0] > since] if service is not None else []
        requests = int(sum(frame[1] for frame in frames))
        seconds = sum(frame[2] for frame in frames)
        return WindowStats(requests, round(seconds / requests, 3) if requests else 0.0)

    def forget_all_but(self, service_ids: set[str]) -> None:
        """Drops services that are gone and have nothing in flight."""
        for service_id in [key for key, value in self._services.items() if not value.in_flight]:
            if service_id not in service_ids:
                del self._services[service_id]

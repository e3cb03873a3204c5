"""Usage of services, read from nginx's access log: requests and their mean time within windows.

A line is `time_iso8601 host status request_time replica_hit`; those with `replica_hit` 1 count. The log is
followed: rotated or cut, reading goes on with the new file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

WINDOWS = (30, 60, 300)
"""In seconds."""
FRAMES = max(WINDOWS)
INTERVAL_S = 0.5

log = logging.getLogger(__name__)


@dataclass
class Frame:
    """The requests of one second."""

    second: int
    requests: int = 0
    request_time: float = 0.0


@dataclass(frozen=True)
class WindowStats:
    requests: int
    request_time: float
    """Mean, in seconds."""


class AccessLog:
    """What the log told, by host. `follow` it in a task."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._frames: dict[str, deque[Frame]] = {}
        self._file: BinaryIO | None = None
        self._rest = b""

    async def follow(self) -> None:
        """From the log's present end on, until it is cancelled."""
        self._open(at_end=True)
        try:
            while True:
                self.read()
                await asyncio.sleep(INTERVAL_S)
        finally:
            self._close()

    def read(self) -> None:
        """What was written since, in this file and in the one that took its place."""
        self._take()
        if self._is_replaced():
            self._take()  # what was written to the old one until now
            self._open(at_end=False)
            self._take()

    def _take(self) -> None:
        if self._file is None:
            return
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""
        while data := self._file.read(1 << 20):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._count(line)

    def _is_replaced(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        if self._file is None:
            return True
        here = os.fstat(self._file.fileno())
        return (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)

    def _open(self, *, at_end: bool) -> None:
        self._close()
        self._rest = b""
        try:
            self._file = open(self._path, "rb")  # noqa: SIM115 # followed until another takes its place
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("Usage of services cannot be read: %s", error)
            return
        if at_end:
            self._file.seek(0, os.SEEK_END)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _count(self, line: bytes) -> None:
        parts = line.decode("utf-8", "replace").split(" ")
        if len(parts) != 5 or parts[4] != "1":
            return
        try:
            second, request_time = int(datetime.fromisoformat(parts[0]).timestamp()), float(parts[3])
        except ValueError:
            log.warning("A line of %s is no record of a request: %r", self._path, line[:200])
            return
        frames = self._frames.setdefault(parts[1].lower(), deque(maxlen=FRAMES))
        if not frames or frames[-1].second < second:
            frames.append(Frame(second))
        frames[-1].requests += 1
        frames[-1].request_time += request_time

    def stats(self, host: str) -> dict[int, WindowStats]:
        """Of each window, up to now."""
        frames, now = self._frames.get(host, ()), self._now()
        return {window: _sum([frame for frame in frames if frame.second > now - window]) for window in WINDOWS}

    def forget(self, host: str) -> None:
        self._frames.pop(host, None)


def _sum(frames: list[Frame]) -> WindowStats:
    requests = sum(frame.requests for frame in frames)
    total = sum(frame.request_time for frame in frames)
    return WindowStats(requests, round(total / requests, 3) if requests else 0.0)

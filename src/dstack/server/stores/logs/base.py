"""The interface of the log stores, and what they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from pydantic import Field

from dstack.core.errors import InvalidRequest
from dstack.core.logs import JobSubmissionLogs
from dstack.server import clock

Frame = tuple[int, bytes]
"""Microseconds since the epoch, and raw output."""

MAX_LIMIT = 1000
DEFAULT_LIMIT = 100
MAX_PAGE_BYTES = 1024 * 1024
"""A page ends after the record that reaches this many stored bytes; `next_token` then leads on."""


@dataclass(frozen=True)
class LogKey:
    """Names the logs of one job submission."""

    project_name: str
    run_name: str
    job_submission_id: UUID


@dataclass(frozen=True)
class LogQuery:
    """Which part of a log to read.

    Ascending: from the oldest; `start_time` and `end_time` exclusive; the token is the next line's number.
    Descending: from the newest; `start_time` exclusive, `end_time` inclusive; the token is a byte offset.
    """

    start_time: datetime | None = None
    end_time: datetime | None = None
    descending: bool = False
    next_token: str | None = None
    limit: int = DEFAULT_LIMIT
    diagnose: bool = False
    """Read what the server and the host had to say about the job instead of its output."""

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= MAX_LIMIT:
            raise InvalidRequest(f"limit must be between 0 and {MAX_LIMIT}, not {self.limit}")
        for moment in (self.start_time, self.end_time):
            if moment is not None and moment.tzinfo is None:
                raise ValueError("start_time and end_time need a time zone")

    @property
    def token_number(self) -> int | None:
        """The token of stores whose tokens are numbers. Raises InvalidRequest for anything else."""
        if self.next_token is None:
            return None
        if not (self.next_token.isascii() and self.next_token.isdigit() and len(self.next_token) < 20):
            raise InvalidRequest(
                f"next_token must be the one that the page before gave, a number; got {self.next_token!r}"
            )
        return int(self.next_token)


class LogPage(JobSubmissionLogs):
    """What the REST API answers, and where an ascending reader goes on later, even after the last page."""

    resume_token: str | None = Field(default=None, exclude=True)


class LogStore(Protocol):
    """Where job logs live. Every implementation passes `tests/integration/stores/test_log_stores.py`."""

    async def position(self, key: LogKey) -> int:
        """The agent's log offset up to which everything is stored; 0 for an unknown key.

        Raises StoreError when the store cannot be read.
        """
        ...

    async def append(self, key: LogKey, frames: Sequence[Frame], end_offset: int) -> None:
        """Stores consecutive frames of which the last ends at `end_offset` of the agent's log.

        Idempotent: frames that end at or before the position are dropped. On return all of it is stored;
        on StoreError (disk full, …) nothing is doubled or torn, and the same call may be made again.
        """
        ...

    async def note(self, key: LogKey, timestamp_us: int, text: str) -> None:
        """Adds a line to the diagnostic log, which `diagnose` reads. Raises StoreError."""
        ...

    async def poll(self, key: LogKey, query: LogQuery) -> LogPage:
        """One page; an unknown key has no logs. Raises InvalidRequest for a bad token, StoreError."""
        ...

    async def delete(self, key: LogKey) -> None:
        """Forgets all logs of the submission; no effect when there are none. Raises StoreError."""
        ...

    def listen(self, key: LogKey, listener: Callable[[], None]) -> AbstractContextManager[None]:
        """Calls `listener` on the event loop after each append to `key` in this process."""
        ...

    async def close(self) -> None:
        """Lets go of what the store holds open."""
        ...


class Announcer:
    """Who waits for more output of which submission, in this process."""

    def __init__(self) -> None:
        self._listeners: dict[LogKey, list[Callable[[], None]]] = {}

    @contextmanager
    def listen(self, key: LogKey, listener: Callable[[], None]) -> Iterator[None]:
        """See `LogStore.listen`."""
        self._listeners.setdefault(key, []).append(listener)
        try:
            yield
        finally:
            self._listeners[key].remove(listener)
            if not self._listeners[key]:
                del self._listeners[key]

    def announce(self, key: LogKey) -> None:
        """Tells whoever listens to `key`."""
        for listener in list(self._listeners.get(key, ())):
            listener()


async def follow(
    store: LogStore, key: LogKey, *, start_time: datetime | None = None, idle_seconds: float = 1.0
) -> AsyncIterator[LogPage]:
    """Yields pages from the first line (after `start_time`) on, and then each addition as it is stored.

    Without end: after `idle_seconds` with nothing new it yields an empty page, so that the caller can look
    whether the job has ended, and other processes' additions are found.
    """
    more = asyncio.Event()
    token: str | None = None
    with store.listen(key, more.set):
        while True:
            more.clear()
            page = await store.poll(key, LogQuery(start_time, next_token=token, limit=MAX_LIMIT))
            yield page
            token = page.resume_token
            if page.next_token is None:
                await clock.happens_within(more, idle_seconds)

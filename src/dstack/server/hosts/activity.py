"""Who is connected to which job: a dev environment that nobody is connected to may end.

Every process that carries connections into jobs (SSH, exec, forwarded ports) counts its own in memory and keeps
the time of the last one with the job, so that replicas agree and a restart forgets nothing. Not part of the loop:
what the times mean is decided by the rules of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from uuid import UUID

from dstack.core.errors import DstackError
from dstack.server.db.engine import Database
from dstack.server.db.queries import watching

logger = logging.getLogger(__name__)

REPORT_EVERY_S = 5.0


class Activity:
    """`connected` around each connection; `start` and `stop` around the process."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._open: Counter[UUID] = Counter()
        self._closed: set[UUID] = set()
        self._news = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._is_stopping = False

    @contextlib.contextmanager
    def connected(self, job_id: UUID) -> Iterator[None]:
        """Somebody is connected to the job for as long as the block lasts."""
        self._open[job_id] += 1
        self._news.set()
        try:
            yield
        finally:
            self._open[job_id] -= 1
            if not self._open[job_id]:
                del self._open[job_id]
                self._closed.add(job_id)
                self._news.set()

    def connections(self, job_id: UUID) -> int:
        """How many this process carries."""
        return self._open[job_id]

    def start(self) -> None:
        """Needs a running event loop."""
        self._loop = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """What is known by now is written first."""
        self._is_stopping = True  # not by cancelling, which `wait_for` may swallow when there is news that moment
        self._news.set()
        if self._loop is not None:
            await self._loop
        await self.report()

    async def _run(self) -> None:
        while not self._is_stopping:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._news.wait(), REPORT_EVERY_S)
            self._news.clear()
            await self.report()

    async def report(self) -> None:
        """Writes the time to all jobs that somebody is, or was a moment ago, connected to."""
        closed, self._closed = self._closed, set()
        jobs = closed | set(self._open)
        if not jobs:
            return
        try:
            async with self._database.transaction() as session:
                await watching.record_activity(session, jobs, self._now())
        except DstackError as error:
            self._closed |= closed
            logger.warning("activity: %s", error.detail)

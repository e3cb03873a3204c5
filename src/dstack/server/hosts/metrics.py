"""Asks the agents of running jobs what these use, and keeps it for a while.

Beside the loop, not in it: a measurement that fails is one point less, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from dstack.core.errors import AgentError, DstackError, HostError
from dstack.server.db.engine import Database
from dstack.server.db.queries import health
from dstack.server.db.queries import metrics as queries
from dstack.server.hosts.connections import Agents, parse_address

logger = logging.getLogger(__name__)

COLLECT_EVERY_S = 10.0
PURGE_EVERY_S = 300.0
AT_ONCE = 50
"""Agents that are asked at the same time."""


@dataclass(frozen=True)
class TimeToLive:
    """Seconds that points of jobs are kept, and health reports of instances."""

    running: int
    finished: int
    health: int


class MetricsCollector:
    """`watched` tells the hosts that this process watches, with their addresses: only they are asked."""

    def __init__(
        self,
        database: Database,
        agents: Agents,
        watched: Callable[[], Mapping[UUID, str]],
        ttl: TimeToLive,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._agents = agents
        self._watched = watched
        self._ttl = ttl
        self._now = now
        self._asking = asyncio.Semaphore(AT_ONCE)
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Needs a running event loop."""
        self._loops = [
            asyncio.ensure_future(_every(COLLECT_EVERY_S, self.collect)),
            asyncio.ensure_future(_every(PURGE_EVERY_S, self.purge)),
        ]

    async def stop(self) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    async def collect(self) -> None:
        """One measurement of every running job on a watched host. Asks nobody anything while none is watched."""
        watched = self._watched()
        if not watched:
            return
        async with self._database.session() as session:
            running = await queries.list_running_jobs(session)
        measured = [
            self._measure(job.id, watched[job.instance_id]) for job in running if job.instance_id in watched
        ]
        points = [point for point in await asyncio.gather(*measured) if point is not None]
        if points:
            async with self._database.transaction() as session:
                await queries.add_points(session, points)

    async def _measure(self, job_id: UUID, address: str) -> dict[str, Any] | None:
        """The columns of a point; None when the job can't be measured now."""
        async with self._asking:
            try:
                told = await self._agents.client(parse_address(address)).task_metrics(str(job_id))
            except (AgentError, HostError) as error:
                logger.debug("job=%s no metrics: %s", job_id, error.detail)
                return None
        return {
            "job_id": job_id,
            "timestamp_micro": self._ago_micro(0),  # the host's clock may be wrong, and ours decides what is old
            "cpu_usage_micro": told.cpu_usage_micro,
            "memory_usage_bytes": told.memory_usage_bytes,
            "memory_working_set_bytes": told.memory_working_set_bytes,
            "gpus": orjson.dumps(told.gpus).decode(),
        }

    async def purge(self) -> None:
        """Deletes points whose time is over."""
        async with self._database.transaction() as session:
            await queries.purge(
                session,
                live_before_micro=self._ago_micro(self._ttl.running),
                finished_before_micro=self._ago_micro(self._ttl.finished),
            )
            await health.purge(session, self._now() - timedelta(seconds=self._ttl.health))

    def _ago_micro(self, seconds: int) -> int:
        return int((self._now() - timedelta(seconds=seconds)).timestamp() * 1_000_000)


async def _every(seconds: float, act: Callable[[], Any]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await act()
        except DstackError as error:
            logger.warning("metrics: %s", error.detail)
        except Exception:
            logger.exception("metrics: a round failed")

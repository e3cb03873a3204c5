"""Brings the output of one task into the log store, each byte once, and lets the host drop what is stored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

from dstack.agent import protocol
from dstack.core.errors import DstackError, HostError, StoreError
from dstack.server.db.engine import Database
from dstack.server.db.queries import watching
from dstack.server.hosts.agent_client import AgentClient, AgentRefused, TaskUnknown
from dstack.server.hosts.sink import LogSink

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 10.0
LOG_DROPPED = 410
"""The agent's answer to an offset before which it has dropped the log."""
ACKNOWLEDGE_EVERY_BYTES = 4 * 1024 * 1024


class OutputFollower:
    """`run` returns when the task has ended and all of its output is stored, or when the task is gone."""

    def __init__(
        self,
        client: AgentClient,
        job: watching.WatchedJob,
        database: Database,
        sink: LogSink,
        by_our_clock: Callable[[int], int] = lambda timestamp_us: timestamp_us,
    ) -> None:
        self._client = client
        self._by_our_clock = by_our_clock
        self._job = job
        self._database = database
        self._sink = sink
        self._told_error: str | None = None
        self._begin = 0
        """What the host has dropped before cannot be had, whatever the store has of it."""

    @property
    def _key(self) -> tuple[str, str, UUID]:
        return self._job.project_name, self._job.run_name, self._job.id

    async def run(self) -> None:
        """Tries again after an error; a store that refuses (disk full) is told in the job's facts."""
        delay = FIRST_RETRY_S
        while True:
            try:
                if await self._store_all():
                    return
            except TaskUnknown as error:
                logger.debug("job=%s output ended: %s", self._job.id, error.detail)
                return
            except HostError as error:
                logger.debug("job=%s output interrupted: %s", self._job.id, error.detail)
            except DstackError as error:
                logger.warning("job=%s output interrupted: %s", self._job.id, error.detail)
            except Exception:
                logger.exception("job=%s output interrupted", self._job.id)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_S)

    async def _store_all(self) -> bool:
        """False when it has to be tried again: the store refuses, or misses what the host has dropped."""
        try:
            await self._follow()
        except StoreError as error:
            await self._tell_error(str(error))
            return False
        except AgentRefused as error:
            if error.status != LOG_DROPPED:
                raise
            logger.warning("job=%s some of its output is lost: %s", self._job.id, error.detail)
            self._begin = (await self._client.get_task(str(self._job.id))).log_start
            return False
        await self._tell_stored()
        return True

    async def _follow(self) -> None:
        position = acknowledged = max(self._begin, await self._sink.position(*self._key))
        async for data, end in self._client.follow_logs(str(self._job.id), position):
            frames = [
                (self._by_our_clock(timestamp), payload) for timestamp, payload, _ in protocol.iter_frames(data)
            ]
            await self._sink.append(*self._key, frames, end)
            position = end
            if self._told_error is not None:
                await self._tell_error(None)
            if position - acknowledged >= ACKNOWLEDGE_EVERY_BYTES:
                await self._client.acknowledge_logs(str(self._job.id), position)
                acknowledged = position
        await self._client.acknowledge_logs(str(self._job.id), position)

    async def _tell_stored(self) -> None:
        async with self._database.transaction() as session:
            await watching.record_logs_stored(session, self._job.id)

    async def _tell_error(self, error: str | None) -> None:
        if error == self._told_error:
            return
        if error is not None:
            logger.warning("job=%s output cannot be stored, tried again: %s", self._job.id, error)
        async with self._database.transaction() as session:
            await watching.record_logs_error(session, self._job.id, error)
        self._told_error = error

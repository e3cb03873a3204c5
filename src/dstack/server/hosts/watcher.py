"""Follows one host: what its agent says of the tasks becomes facts of their jobs, their output goes to the store.

Level-triggered: the agent tells the newest state of each task, so a broken stream or a restart loses nothing.
Only facts are written here; what they mean is decided by the rules.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from dstack import __version__
from dstack.agent import protocol
from dstack.agent.protocol import AgentInfo, StopRequest, TaskState
from dstack.core.canonical import dump_json
from dstack.core.errors import AgentError, DstackError, HostError
from dstack.core.instances import Gpu, InstanceOfferWithAvailability
from dstack.server.db.engine import Database
from dstack.server.db.queries import watching
from dstack.server.hosts import health
from dstack.server.hosts.agent_client import AgentClient
from dstack.server.hosts.output import OutputFollower
from dstack.server.hosts.sink import LogSink
from dstack.server.hosts.ssh.archive import AgentArchive

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 5.0
CLOCK_TOLERANCE_S = 5.0
"""Clocks of hosts that differ from ours by less are taken as they are."""


@dataclass(frozen=True)
class WatchContext:
    """What every watcher needs."""

    database: Database
    sink: LogSink
    now: Callable[[], datetime]
    archive: AgentArchive | None = None
    """The agent that hosts reached over SSH are to run."""


class HostWatcher:
    """`run` until cancelled; reconnects with back-off. One per instance and at most one at a time."""

    def __init__(
        self, instance_id: UUID, client: AgentClient, context: WatchContext, *, is_remote: bool = False
    ) -> None:
        self._archive = context.archive if is_remote else None
        self._instance_id = instance_id
        self._client = client
        self._context = context
        self._followers: dict[UUID, asyncio.Task[None]] = {}
        self._pending: dict[UUID, TaskState] = {}
        self._news = asyncio.Event()
        self._clock_error_us = 0
        """How far the host's clock is ahead of ours."""

    async def run(self) -> None:
        """Never returns by itself."""
        delay = FIRST_RETRY_S
        try:
            while True:
                try:
                    await self._meet()
                    delay = FIRST_RETRY_S
                    await self._follow()
                except (HostError, AgentError) as error:
                    logger.debug("instance=%s contact lost: %s", self._instance_id, error.detail)
                    await self._lose_contact()
                except DstackError as error:
                    logger.warning("instance=%s %s", self._instance_id, error.detail)
                except Exception:
                    logger.exception("instance=%s watching failed", self._instance_id)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY_S)
        finally:
            await self._end_followers()

    async def _meet(self) -> None:
        """Learns who answers, and which tasks the host no longer knows: of those that it knew before we ask."""
        info = await self._client.info()
        self._clock_error_us = _clock_error_us(info, self._context.now())
        told = await self._told(info)
        async with self._context.database.session() as session:
            jobs = await watching.list_live_jobs(session, self._instance_id)
        known = {UUID(task.id) for task in await self._client.list_tasks()}
        async with self._context.database.transaction() as session:
            await watching.record_contact(session, self._instance_id, json.dumps(told))
            await self._record_gpus(session, info)
            lost = {job.id: _lost(job) for job in jobs if job.id not in known and _was_alive(job)}
            await watching.record_task_states(session, lost)
            for id in lost:
                await watching.record_logs_stored(session, id)  # what was not fetched is gone with the host's disk

    async def _record_gpus(self, session: AsyncSession, info: AgentInfo) -> None:
        """The server's own machine is on record for longer than what is in it."""
        text = await watching.find_own_offer(session, self._instance_id)
        if text is None:
            return
        offer = InstanceOfferWithAvailability.model_validate_json(text, extra="ignore")
        gpus = [Gpu.model_validate(gpu, extra="ignore") for gpu in info.host.get("gpus", [])]
        if offer.instance.resources.gpus != gpus:
            offer.instance.resources.gpus = gpus
            await watching.record_own_offer(session, self._instance_id, dump_json(offer))

    async def _told(self, info: AgentInfo) -> dict[str, Any]:
        """What is recorded of an agent, and with `is_outdated` that this server brings a newer one."""
        told = info.to_json()
        del told["clock"]
        if self._archive is not None:
            is_other = (await self._archive.get()).sha256 != info.archive_sha256
            told["is_outdated"] = is_other and _numbers(info.agent_version) <= _numbers(__version__)
        return told

    async def _lose_contact(self) -> None:
        async with self._context.database.transaction() as session:
            await watching.record_lost_contact(session, self._instance_id, self._context.now())

    async def _follow(self) -> None:
        """Until the event stream or the recording of it fails."""
        listening = asyncio.ensure_future(self._listen())
        recording = asyncio.ensure_future(self._record())
        try:
            done, _ = await asyncio.wait((listening, recording), return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            for task in (listening, recording):
                task.cancel()
            await asyncio.gather(listening, recording, return_exceptions=True)

    async def _listen(self) -> None:
        async for event in self._client.events(after=0):
            if event.task is not None:
                state = TaskState.from_json(event.task)
                self._pending[UUID(state.id)] = state
                self._news.set()
            if event.health is not None:
                await health.record(self._context.database, self._instance_id, event.health, self._context.now())

    async def _record(self) -> None:
        """Writes what has come in since the last time in one transaction: more at once under load."""
        while True:
            await self._news.wait()
            self._news.clear()
            states, self._pending = self._pending, {}
            await self._take(states)

    async def _take(self, states: dict[UUID, TaskState]) -> None:
        async with self._context.database.transaction() as session:
            jobs = await watching.get_watched_jobs(session, list(states))
            mine = {id: job for id, job in jobs.items() if job.instance_id == self._instance_id}
            live = {id: job for id, job in mine.items() if job.status not in watching.FINISHED_JOBS}
            texts = {id: json.dumps(states[id].to_json()) for id in live}
            await watching.record_task_states(session, texts)
            for id, job in live.items():
                if states[id].pull_progress is not None:
                    watching.tell_of_pulling(session, job)
        for id, job in live.items():
            self._ensure_follower(job, states[id])
        for id in states:
            if id not in jobs or (id in mine and id not in live):
                await self._forget(states[id])

    def _ensure_follower(self, job: watching.WatchedJob, state: TaskState) -> None:
        """Output is followed from the moment the task runs until all of it is stored."""
        if state.status not in (protocol.RUNNING, protocol.ENDED) or job.logs_stored or job.id in self._followers:
            return
        follower = OutputFollower(
            self._client, job, self._context.database, self._context.sink, self._by_our_clock
        )
        task = self._followers[job.id] = asyncio.ensure_future(follower.run())
        task.add_done_callback(lambda _: self._followers.pop(job.id, None))

    def _by_our_clock(self, timestamp_us: int) -> int:
        return timestamp_us - self._clock_error_us

    async def _forget(self, state: TaskState) -> None:
        """A task of which no live job is left: a leftover of a previous life."""
        if state.status != protocol.ENDED:
            await self._client.stop_task(
                state.id, StopRequest(message="no job of that id is alive", grace_seconds=0)
            )
        else:
            await self._client.delete_task(state.id)

    async def _end_followers(self) -> None:
        followers = list(self._followers.values())
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)


def _clock_error_us(info: AgentInfo, now: datetime) -> int:
    """0 for what an answer may take to get here, and for agents that do not tell."""
    error_seconds = info.clock - now.timestamp()
    return int(error_seconds * 1_000_000) if info.clock and abs(error_seconds) > CLOCK_TOLERANCE_S else 0


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _was_alive(job: watching.WatchedJob) -> bool:
    """Whether the host knew the task and had not yet told of its end."""
    if job.task_state is None:
        return False
    return TaskState.from_json(json.loads(job.task_state)).status != protocol.ENDED


def _lost(job: watching.WatchedJob) -> str:
    """The end of a task that the host has no memory of (its disk was wiped)."""
    state = TaskState(
        id=str(job.id),
        seq=0,
        status=protocol.ENDED,
        reason=protocol.EXECUTOR_ERROR,
        message="the host no longer knows this task; its state was lost",
    )
    return json.dumps(state.to_json())

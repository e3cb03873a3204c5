"""Asks replicas of services whether they are ready: by their probes, or by connecting where they have none.

Beside the loop, not in it: how often each probe has succeeded in a row is a fact of the job; what follows from it
is decided by the rules (a replica that is ready takes traffic) and the proxy (one that fails is not preferred).
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Mapping
from uuid import UUID

from dstack.core.errors import DstackError
from dstack.core.jobs import JobSpec, ProbeSpec
from dstack.server import clock
from dstack.server.db.engine import Database
from dstack.server.db.queries import probes as queries
from dstack.server.db.queries.probes import ProbedJob
from dstack.server.hosts.replicas import ReplicaDialer

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""Changes are heard of at once; this finds what was missed."""
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 1.0
"""Between attempts to connect to a replica without probes."""
CONNECT_SECONDS = 5.0
KEPT_SECONDS = 0.2
"""A connection that lasts so long has somebody at its end."""
HOST = "dstack"


class Prober:
    """`watched` tells the hosts that this process watches: only replicas there are asked, each by one server."""

    def __init__(
        self, database: Database, watched: Callable[[], Mapping[UUID, str]], dialer: ReplicaDialer
    ) -> None:
        self._database = database
        self._watched = watched
        self._dialer = dialer
        self._probing: dict[UUID, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._deaf: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Needs a running event loop."""
        self._deaf = self._database.wakeups.listen(self._hear)
        self._loop = asyncio.ensure_future(self._run())

    def _hear(self, name: str) -> None:
        if name == "routes":
            self._changed.set()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._look()
            except DstackError as error:
                logger.warning("probes: %s", error.detail)
            except Exception:
                logger.exception("probes: a look at the services failed")
            await clock.happens_within(self._changed, LOOK_EVERY_S)

    async def _look(self) -> None:
        async with self._database.session() as session:
            jobs = {job.id: job for job in await queries.list_probed(session)}
        watched = self._watched()
        wanted = {id for id, job in jobs.items() if job.instance_id in watched}
        for id in [id for id, task in self._probing.items() if id not in wanted or task.done()]:
            self._probing.pop(id).cancel()
        for id in wanted - self._probing.keys():
            self._probing[id] = asyncio.ensure_future(_probe(self._database, self._dialer, jobs[id]))

    async def stop(self) -> None:
        self._deaf()
        tasks = [*self._probing.values(), *([self._loop] if self._loop else [])]
        self._probing.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _probe(database: Database, dialer: ReplicaDialer, job: ProbedJob) -> None:
    """Returns when nothing is to be asked any more."""
    if job.probe_streaks is not None:
        await ReplicaProbes(database, dialer, job, job.probe_streaks).run()
        return
    pause = FIRST_PAUSE_S
    while not await listens(dialer, job.service_address):
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LAST_PAUSE_S)
    try:
        async with database.transaction() as session:
            await queries.record_listening(session, job)
    except DstackError as error:  # the next look finds it again
        logger.warning("job=%s that it listens could not be recorded: %s", job.id, error.detail)


async def listens(dialer: ReplicaDialer, address: str) -> bool:
    """Whether somebody takes connections there, and keeps them: a forwarder in front of nobody closes them."""
    try:
        async with timeout(CONNECT_SECONDS):
            reader, writer = await dialer.connect(address)
    except (OSError, TimeoutError, asyncio.TimeoutError):
        return False
    try:
        return await asyncio.wait_for(reader.read(1), KEPT_SECONDS) != b""
    except (asyncio.TimeoutError, TimeoutError):
        return True
    except OSError:
        return False
    finally:
        writer.transport.abort()


class ReplicaProbes:
    """All probes of one replica; `run` returns when none is to be made any more."""

    def __init__(self, database: Database, dialer: ReplicaDialer, job: ProbedJob, streaks: str) -> None:
        """`streaks`: JSON of what was seen until now."""
        self._database = database
        self._dialer = dialer
        self._job = job
        self._probes = JobSpec.model_validate_json(job.job_spec, extra="ignore").probes
        self._streaks: list[int] = json.loads(streaks)
        self._is_ready = self._are_content()
        self._recording = asyncio.Lock()

    async def run(self) -> None:
        await asyncio.gather(*(self._repeat(index, probe) for index, probe in enumerate(self._probes)))

    async def _repeat(self, index: int, probe: ProbeSpec) -> None:
        while not (probe.until_ready and self._is_ready):
            succeeded = await is_successful(probe, self._dialer, self._job.service_address)
            try:
                if not await self._record(index, succeeded=succeeded):
                    return
            except DstackError as error:
                logger.warning("job=%s its probe could not be recorded: %s", self._job.id, error.detail)
            await asyncio.sleep(probe.interval)

    async def _record(self, index: int, *, succeeded: bool) -> bool:
        """False: the replica does not run any more."""
        async with self._recording:
            self._streaks[index] = self._streaks[index] + 1 if succeeded else 0
            is_ready = self._are_content()
            is_news = is_ready != self._is_ready
            async with self._database.transaction() as session:
                runs = await queries.record_streaks(
                    session, self._job, self._streaks, healthy=is_ready, is_news=is_news
                )
            self._is_ready = is_ready
            return runs

    def _are_content(self) -> bool:
        return all(streak >= probe.ready_after for streak, probe in zip(self._streaks, self._probes, strict=True))


async def is_successful(probe: ProbeSpec, dialer: ReplicaDialer, address: str) -> bool:
    """Whether the replica answers with 2xx in time; redirects are not followed."""
    try:
        async with timeout(probe.timeout):
            status = await _ask(probe, dialer, address)
    except (OSError, TimeoutError, asyncio.TimeoutError, ValueError, EOFError) as error:
        logger.debug("probe of %s at %s: %s", probe.url, address, error)
        return False
    return 200 <= status < 300


async def _ask(probe: ProbeSpec, dialer: ReplicaDialer, address: str) -> int:
    """The status of the final answer. Raises OSError, EOFError or ValueError where there is none."""
    reader, writer = await dialer.connect(address)
    try:
        writer.write(request_bytes(probe))
        await writer.drain()
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError as error:
                raise ValueError("the answer's head is too large") from error
            status = _status(head)
            if status >= 200:
                return status
    finally:
        writer.transport.abort()


def _status(head: bytes) -> int:
    version, _, rest = head.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("the answer is not HTTP")
    return int(rest[:3])


def request_bytes(probe: ProbeSpec) -> bytes:
    """The request as it is sent; the probe's own headers replace ours."""
    fields = {"host": ("Host", HOST), "accept": ("Accept", "*/*"), "user-agent": ("User-Agent", HOST)}
    body = (probe.body or "").encode()
    for header in probe.headers:
        fields[header.name.lower()] = (header.name, header.value)
    if body or probe.method in ("post", "put", "patch"):
        fields["content-length"] = ("Content-Length", str(len(body)))
    fields["connection"] = ("Connection", "close")
    fields.pop("transfer-encoding", None)
    lines = [f"{probe.method.upper()} {probe.url} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.values()]
    return "\r\n".join([*lines, "", ""]).encode() + body

"""The loop, written once: who is woken when, and the workers that make the passes (`passes`).

What wakes a key: `wake`; a name ``"<kind>:<uuid>"`` on `Wakeups` (later, when another replica published it); its
timer (the row's `wake_at`); a sweep over what is unfinished; on PostgreSQL a look for what other replicas left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Table

from dstack.core.fleets import FleetStatus
from dstack.core.gateways import GatewayReplicaStatus, GatewayStatus
from dstack.core.instances import InstanceStatus
from dstack.core.jobs import JobStatus
from dstack.core.runs import RunStatus
from dstack.core.volumes import VolumeStatus
from dstack.server import clock as system_clock
from dstack.server.clock import Clock
from dstack.server.db.engine import Database
from dstack.server.db.errors import DatabaseError
from dstack.server.db.queries import reconciled
from dstack.server.db.tables import (
    FleetRow,
    GatewayReplicaRow,
    GatewayRow,
    InstanceRow,
    JobRow,
    ProjectRow,
    RunRow,
    VolumeRow,
)
from dstack.server.orchestrator import crash_points, metrics
from dstack.server.orchestrator.decision import Key, Kind, Outcome, ResourceKind
from dstack.server.orchestrator.leases import LEASE_SECONDS, Busy, Leases
from dstack.server.orchestrator.passes import BackOff, Pass, Passes
from dstack.server.orchestrator.queue import WorkQueue
from dstack.server.orchestrator.timers import Timers
from dstack.server.wakeups import Wakeups

ROWS = {
    Kind.RUN: RunRow,
    Kind.JOB: JobRow,
    Kind.INSTANCE: InstanceRow,
    Kind.FLEET: FleetRow,
    Kind.VOLUME: VolumeRow,
    Kind.GATEWAY: GatewayRow,
    Kind.GATEWAY_REPLICA: GatewayReplicaRow,
    Kind.PLACEMENT: ProjectRow,
}
UNFINISHED: Mapping[Kind, tuple[str, ...]] = {
    Kind.RUN: tuple(status.value for status in RunStatus if not status.is_finished()),
    Kind.JOB: tuple(status.value for status in JobStatus if not status.is_finished()),
    Kind.INSTANCE: tuple(status.value for status in InstanceStatus if not status.is_finished()),
    Kind.FLEET: tuple(status.value for status in FleetStatus if not status.is_finished()),
    Kind.VOLUME: tuple(status.value for status in VolumeStatus),
    Kind.GATEWAY: tuple(status.value for status in GatewayStatus),
    Kind.GATEWAY_REPLICA: tuple(status.value for status in GatewayReplicaStatus if not status.is_finished()),
    Kind.PLACEMENT: ("active",),
}

FIRST_BUSY_RETRY_S = 0.05

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How fast the loop does what, in seconds; tests use smaller ones."""

    workers: int = 64
    deciding: int = 4
    """SQLite: how many of them read, decide and write at once, which is work for this one process. Who would only
    wait for the others takes no key yet, so that the most important one is taken next. Effects are not counted."""
    sweep: float = 30.0
    """Every unfinished row is looked at this often, woken or not."""
    sweep_rate: float = 10.0
    """Rows a second that a sweep wakes at most: with very many rows it takes longer."""
    catch_up_rate: float = 100.0
    """The same for a sweep after wake-ups of other replicas were missed."""
    look_for_others: float = 5.0
    """PostgreSQL: how often to look for timers that others wrote and for what dead replicas left."""
    lease: float = LEASE_SECONDS
    leave_to_others: float = 3.0
    """PostgreSQL: a key that another replica woke is left to it for so long."""
    busy_retry: float = 1.0
    """A key that another replica works on is tried again after this, at first sooner: most passes are short."""
    back_off: BackOff = field(default_factory=BackOff)
    effect_timeout: float = 600.0
    drain: float = 20.0
    """How long `stop` lets running passes go on."""


_DEFAULT_PACE = Pace()


class Engine:
    """Drives all kinds. `await start()`, then `wake(key)` or names on `wakeups`; `await stop()` drains."""

    def __init__(
        self,
        database: Database,
        kinds: Iterable[ResourceKind[Any]],
        world: Any,
        wakeups: Wakeups | None = None,
        clock: Clock = system_clock.now,
        *,
        pace: Pace = _DEFAULT_PACE,
        crash: crash_points.CrashPoints | None = None,
    ) -> None:
        """`world` is passed to the effects. `crash`: see `crash_points`; by default what the environment says."""
        by_kind = {kind.kind: kind for kind in kinds}
        self._database = database
        self._tables = {kind: cast(Table, ROWS[kind].__table__) for kind in by_kind}
        self._wakeups = wakeups or database.wakeups
        self._clock = clock
        self._pace = pace
        self._queue = WorkQueue(at_most={Kind.INSTANCE: max(1, pace.workers // 2)})
        """Hosts that do not answer take their time: they are not to keep the jobs of the others waiting."""
        self._timers = Timers(clock, self.wake)
        self._leases = Leases(database, self._tables, pace.lease)
        is_alone = database.dialect == "sqlite"
        self._desks = asyncio.Semaphore(pace.deciding if is_alone else pace.workers)
        self._passes = Passes(
            database,
            by_kind,
            self._tables,
            world,
            clock,
            leases=self._leases,
            crash=crash or crash_points.from_text(os.environ.get(crash_points.VARIABLE)),
            back_off=pace.back_off,
            effect_timeout=pace.effect_timeout,
        )
        self._priorities: dict[Key, int] = {}
        self._busy: Counter[Key] = Counter()
        """How often in a row another replica was found at work on it."""
        self._workers: set[asyncio.Task[None]] = set()
        self._in_pass: set[asyncio.Task[None]] = set()
        self._watchers: set[asyncio.Task[None]] = set()
        self._sweep_now = asyncio.Event()
        self._is_stopping = False
        self._end_listening: Callable[[], None] | None = None

    async def start(self) -> None:
        """Listens, reads the timers, and looks at every unfinished row once: a crash may have cut its effects."""
        self._end_listening = self._wakeups.listen(self._hear, from_others=self._hear_of_others)
        await self._read_timers()
        await self._sweep()
        for number in range(self._pace.workers):
            self._workers.add(asyncio.create_task(self._work(), name=f"worker-{number}"))
        self._watchers.add(asyncio.create_task(self._sweep_forever(), name="sweep"))
        if self._database.dialect == "postgresql":
            self._watchers.add(asyncio.create_task(self._look_for_others(), name="look-for-others"))

    async def stop(self) -> None:
        """Begins nothing new, lets passes end (`Pace.drain`), cancels the rest. All leases are given back."""
        self._is_stopping = True
        if self._end_listening is not None:
            self._end_listening()
            self._end_listening = None
        self._timers.stop()
        await _cancel(self._watchers)
        await _cancel(self._workers - self._in_pass)
        if self._in_pass:
            await asyncio.wait(set(self._in_pass), timeout=self._pace.drain)
        await _cancel(self._workers)
        self._workers.clear()
        await self._leases.stop()

    def wake(self, key: Key) -> None:
        """Has the key processed soon; cheap, and duplicates fold into one."""
        if key.kind in self._tables and not self._is_stopping:
            self._queue.put(key, self._priorities.get(key, 0))
            metrics.WAITING.set(len(self._queue))

    async def process(self, key: Key, before_effects: Callable[[], None] = lambda: None) -> Outcome:
        """One pass, now. What goes wrong is in the outcome and is tried again later."""
        began = time.perf_counter()
        try:
            this = await self._passes.run(key, before_effects)
        except Busy as error:
            self._busy[key] += 1
            seconds = min(self._pace.busy_retry, FIRST_BUSY_RETRY_S * 2 ** min(self._busy[key], 10))
            self._timers.set_sooner(key, self._after(seconds))
            return Outcome(key, None, error=error)
        except Exception as error:
            if isinstance(error, DatabaseError):
                logger.warning("%s=%s: a pass is made again: %s", key.kind.value, key.id, error)
            else:
                logger.exception("%s=%s: a pass failed", key.kind.value, key.id)
            self._timers.set_sooner(key, self._clock() + self._pace.back_off.after(4))
            metrics.FAILED.labels(key.kind.value).inc()
            return Outcome(key, None, error=error)
        self._settle(key, this)
        metrics.PROCESSED.labels(key.kind.value).inc()
        metrics.SECONDS.labels(key.kind.value).observe(time.perf_counter() - began)
        return Outcome(key, None) if this is None else this.outcome()

    def _settle(self, key: Key, this: Pass | None) -> None:
        """When the key is looked at next."""
        self._busy.pop(key, None)
        self._timers.set(key, this.wake_at if this else None)
        if this is not None and this.priority and this.head.status in UNFINISHED[key.kind]:
            self._priorities[key] = this.priority
        else:
            self._priorities.pop(key, None)
        if this is None:
            return
        if this.error is not None:
            metrics.FAILED.labels(key.kind.value).inc()
        elif this.again:
            self.wake(key)

    async def _work(self) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        while not self._is_stopping:
            await self._desks.acquire()
            with contextlib.ExitStack() as desk:
                desk.callback(self._desks.release)
                key = await self._queue.get()
                self._in_pass.add(task)
                try:
                    await self.process(key, before_effects=desk.close)
                finally:
                    self._in_pass.discard(task)
                    self._queue.done(key)
            await asyncio.sleep(0)  # a pass need not have waited for anything

    def _hear(self, name: str) -> None:
        if name == "missed":
            self._sweep_now.set()
            return
        key = parse_key(name)
        if key is not None:
            self.wake(key)

    def _hear_of_others(self, name: str) -> None:
        """Whoever published it works on it: we look later, whether that was so. What we work on ourselves they
        cannot take: it is looked at again at once."""
        key = parse_key(name)
        if key is None or self._queue.is_working_on(key):
            self._hear(name)
        elif key.kind in self._tables and not self._is_stopping:
            seconds = self._pace.leave_to_others * random.uniform(1.0, 1.3)
            self._timers.set_sooner(key, self._after(seconds))

    def _after(self, seconds: float) -> datetime:
        return self._clock() + timedelta(seconds=seconds)

    async def _read_timers(self) -> None:
        for kind, table in self._tables.items():
            async with self._database.session() as session:
                for id, wake_at in await reconciled.list_timers(session, table):
                    self._timers.set(Key(kind, id), wake_at)

    async def _sweep_forever(self) -> None:
        seconds = self._pace.sweep
        while True:
            await system_clock.happens_within(self._sweep_now, seconds)
            rate = self._pace.catch_up_rate if self._sweep_now.is_set() else self._pace.sweep_rate
            self._sweep_now.clear()
            try:
                seconds = max(self._pace.sweep, await self._sweep(rate) / rate)
            except Exception as error:  # noqa: BLE001 - it must survive a database that is away for a while
                logger.warning("The sweep failed and is tried again: %s", error)
                seconds = self._pace.sweep

    async def _sweep(self, rate: float | None = None) -> int:
        """Wakes all that is unfinished: at once, or by chance over a time in which so many a second are woken.
        Returns how many."""
        keys = []
        for kind, table in self._tables.items():
            async with self._database.session() as session:
                ids = await reconciled.list_unfinished(session, table, UNFINISHED[kind])
            keys += [Key(kind, id) for id in ids]
        spread_seconds = 0.0 if rate is None else max(self._pace.sweep, len(keys) / rate)
        for key in keys:
            if spread_seconds:
                self._timers.set_sooner(key, self._after(random.uniform(0, spread_seconds)))
            else:
                self.wake(key)
        return len(keys)

    async def _look_for_others(self) -> None:
        """Takes over due timers and abandoned leases of replicas that are gone."""
        while True:
            await asyncio.sleep(self._pace.look_for_others * random.uniform(0.7, 1.3))
            try:
                for kind, table in self._tables.items():
                    async with self._database.session() as session:
                        due = await reconciled.list_timers(session, table, self._clock())
                        left = await reconciled.list_abandoned(session, table)
                    for id in {id for id, _ in due} | set(left):
                        self.wake(Key(kind, id))
            except Exception as error:  # noqa: BLE001 - it must survive a database that is away for a while
                logger.warning("Looking for other replicas' work failed and is tried again: %s", error)


def parse_key(name: str) -> Key | None:
    """Of ``"<kind>:<uuid>"``; None for names that are not about a resource of the loop."""
    kind, _, id = name.partition(":")
    try:
        return Key(Kind(kind), UUID(id))
    except ValueError:
        return None


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

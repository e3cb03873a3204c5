"""One pass over a key: lease → load → decide → record → effects → facts. The engine decides when there is one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Table

from dstack.core.errors import DstackError
from dstack.server.clock import Clock
from dstack.server.db.engine import Database, wake
from dstack.server.db.errors import DatabaseError
from dstack.server.db.queries import reconciled
from dstack.server.db.queries.reconciled import Head
from dstack.server.orchestrator.crash_points import CrashPoints
from dstack.server.orchestrator.decision import (
    Decision,
    Effect,
    Key,
    Kind,
    Outcome,
    ResourceKind,
    StaleSnapshot,
    TerminalEffectError,
)
from dstack.server.orchestrator.leases import Leases

STALE_TRIES = 5
"""How often a pass starts again because its snapshot was outdated, before others get their turn."""
MAX_ERROR_CHARACTERS = 2_000

logger = logging.getLogger(__name__)


class LeaseLost(Exception):
    """A guarded write found that somebody else has the row now; they do the rest."""


@dataclass(frozen=True)
class BackOff:
    """How long to wait after failures in a row: doubling, with jitter so that many do not come back at once."""

    first_seconds: float = 0.5
    longest_seconds: float = 60.0

    def after(self, attempts: int) -> timedelta:
        """`attempts` ≥ 1."""
        seconds = min(self.first_seconds * 2 ** min(attempts - 1, 30), self.longest_seconds)
        return timedelta(seconds=seconds * random.uniform(0.5, 1.0))


@dataclass
class Pass:
    """What a pass has found out so far."""

    key: Key
    head: Head
    priority: int = 0
    decision: Decision[Any] | None = None
    facts: dict[str, Any] | None = None
    error: BaseException | None = None
    wake_at: datetime | None = None
    retry_at: datetime | None = None
    """When what failed before is due again."""
    again: bool = False

    def waits_for_retry(self, now: datetime) -> bool:
        """Nothing was done that could have made up for the failure."""
        has_acted = self.decision is None or bool(self.decision.effects)
        return not has_acted and self.retry_at is not None and now < self.retry_at == self.wake_at

    def outcome(self) -> Outcome:
        return Outcome(self.key, self.decision, self.facts or {}, self.error)


class Passes:
    """Makes passes. Holds nothing between them."""

    def __init__(
        self,
        database: Database,
        kinds: Mapping[Kind, ResourceKind[Any]],
        tables: Mapping[Kind, Table],
        world: Any,
        clock: Clock,
        *,
        leases: Leases,
        crash: CrashPoints,
        back_off: BackOff,
        effect_timeout: float,
    ) -> None:
        self._database = database
        self._kinds = kinds
        self._tables = tables
        self._world = world
        self._clock = clock
        self._leases = leases
        self._crash = crash
        self._back_off = back_off
        self._effect_timeout = effect_timeout

    async def run(self, key: Key, before_effects: Callable[[], None] = lambda: None) -> Pass | None:
        """None when there is no such row. Raises `leases.Busy`, and what the database raises.

        `before_effects` is called when all that is left to do may take its time.
        """
        head = await self._leases.acquire(key)
        if head is None:
            return None
        this = Pass(key, head, wake_at=head.wake_at, retry_at=head.wake_at if head.attempts else None)
        try:
            await self._run(this, before_effects)
        except LeaseLost:
            logger.info("%s=%s: somebody else took over", key.kind.value, key.id)
        finally:
            await asyncio.shield(self._leases.release(key, head))
        return this

    async def _run(self, this: Pass, before_effects: Callable[[], None]) -> None:
        try:
            if not await self._decide_and_record(this):
                return
        except (LeaseLost, DatabaseError):
            raise
        except Exception as error:
            logger.exception("%s=%s: the rules failed", this.key.kind.value, this.key.id)
            this.error = error
            await self._write_facts(this)
            return
        assert this.decision is not None
        if this.decision.effects:
            before_effects()
        await self._perform(this, this.decision.effects)
        await self._write_facts(this)
        this.again = this.again or this.decision.again

    async def _decide_and_record(self, this: Pass) -> bool:
        """False when there is nothing more to do: the row is gone, or its snapshot is outdated each time."""
        kind = self._kinds[this.key.kind]
        for _ in range(STALE_TRIES):
            async with self._database.session() as session:
                snapshot = await kind.load(session, this.key.id)
            if snapshot is None:
                return False
            now = self._clock()
            this.priority = kind.priority(snapshot)
            decision = kind.decide(snapshot, now)
            try:
                await self._record(this, snapshot, decision, now)
            except StaleSnapshot:
                continue
            this.decision = decision
            return True
        this.again = True
        return False

    async def _record(self, this: Pass, snapshot: Any, decision: Decision[Any], now: datetime) -> None:
        self._crash(this.key.kind, "before-record")
        status = decision.status.value
        is_news = (
            status != this.head.status
            or bool(decision.writes)
            or (decision.reason, decision.message)
            != (
                None,
                None,
            )
        )
        wake_at = this.head.wake_at
        if decision.rest_until is None:
            wake_at = _next_look(wake_at, decision.look_again_at, now)
        if is_news or (wake_at != this.head.wake_at and not decision.again):
            values = {"status": status, "wake_at": wake_at, "last_processed_at": now}
            is_last = not decision.effects and this.head.attempts == 0
            async with self._database.transaction() as session:
                await self._write(session, this, values, free=is_last)
                if is_news:
                    await self._kinds[this.key.kind].record(session, snapshot, decision, now)
                wake(session, *(name_of(key) for key in decision.wake))
            self._written(this, free=is_last)
            this.head.status, this.head.wake_at = status, wake_at
        else:
            self._database.wakeups.publish(name_of(key) for key in decision.wake)
        this.wake_at = wake_at
        self._crash(this.key.kind, "after-record")

    async def _write(self, session: Any, this: Pass, values: Mapping[str, Any], *, free: bool) -> None:
        table = self._tables[this.key.kind]
        if not await reconciled.write(session, table, this.key.id, this.head, values, free=free):
            raise LeaseLost

    def _written(self, this: Pass, *, free: bool) -> None:
        """After the commit only: a transaction that failed has not changed the version."""
        this.head.version += 1
        if free:
            this.head.token = None

    async def _perform(self, this: Pass, effects: tuple[Effect, ...]) -> None:
        """In their order, until one fails. What they saw is in `this.facts`, the failure in `this.error`."""
        facts: dict[str, Any] = {}
        this.facts = facts
        for effect in effects:
            name = type(effect).__name__
            self._crash_around("before-effect", this.key.kind, name)
            try:
                handler = self._kinds[this.key.kind].effects[type(effect)]
                seen = await asyncio.wait_for(handler(effect, self._world, this.key), self._effect_timeout)
                facts.update(seen or {})
            except TerminalEffectError as error:
                facts.update(error.facts)
                logger.warning("%s=%s: %s: %s", this.key.kind.value, this.key.id, name, error)
                return
            except Exception as error:
                this.error = error
                logger.warning("%s=%s: %s: %s", this.key.kind.value, this.key.id, name, _describe(error))
                logger.debug("%s failed", name, exc_info=True)
                return
            self._crash_around("after-effect", this.key.kind, name)

    def _crash_around(self, point: str, kind: Kind, effect: str) -> None:
        self._crash(kind, point)
        self._crash(kind, f"{point}.{effect}")

    async def _write_facts(self, this: Pass) -> None:
        """Facts, and the count of failures. New facts have the key processed again."""
        changes = await self._new_facts(this)
        this.again = this.again or bool(changes)
        if this.decision is not None and this.decision.rest_until is not None:
            this.wake_at = changes["wake_at"] = this.decision.rest_until
        if this.error is not None:
            attempts = this.head.attempts + 1
            retry_at = self._clock() + self._back_off.after(attempts)
            this.wake_at = (
                min(this.wake_at, retry_at) if this.wake_at and this.wake_at > self._clock() else retry_at
            )
            changes |= {
                "attempts": attempts,
                "last_error": _describe(this.error)[:MAX_ERROR_CHARACTERS],
                "wake_at": this.wake_at,
            }
        elif this.head.attempts and not this.waits_for_retry(self._clock()):
            changes |= {"attempts": 0, "last_error": None}
        if not changes:
            return
        self._crash(this.key.kind, "before-facts")
        async with self._database.transaction() as session:
            await self._write(session, this, changes, free=True)
            if this.facts:
                wake(
                    session, name_of(this.key)
                )  # for those who follow the resource, such as the watchers of hosts
        self._written(this, free=True)
        self._crash(this.key.kind, "after-facts")

    async def _new_facts(self, this: Pass) -> dict[str, Any]:
        """Those that differ from the row: what an effect saw before needs no writing and wakes nobody."""
        if not this.facts:
            return {}
        async with self._database.session() as session:
            table = self._tables[this.key.kind]
            known = await reconciled.read_columns(session, table, this.key.id, list(this.facts))
        if known is None:
            raise LeaseLost
        return {name: value for name, value in this.facts.items() if known[name] != value}


def _next_look(recorded: datetime | None, wanted: datetime | None, now: datetime) -> datetime | None:
    """A time on record that comes before the wanted one stands: looking early is cheaper than writing."""
    if recorded is not None and wanted is not None and now < recorded <= wanted:
        return recorded
    return wanted


def name_of(key: Key) -> str:
    """What wakes the key on `Wakeups`."""
    return f"{key.kind.value}:{key.id}"


def _describe(error: BaseException) -> str:
    """Our own errors are in words for the user; others are named."""
    if isinstance(error, DstackError):
        return str(error)
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "timed out"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

"""A small kind for tests of the loop, on the table of runs: submitted → running → done, effects counted."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from tests.fixtures.rows import project_row, run_row, user_row

from dstack.core.runs import RunStatus
from dstack.server import events
from dstack.server.db.engine import Database
from dstack.server.db.tables import RunRow
from dstack.server.guards import assert_no_transaction
from dstack.server.orchestrator.decision import Decision, Effect, Facts, Key, Kind, StaleSnapshot
from dstack.server.orchestrator.engine import Pace
from dstack.server.orchestrator.passes import BackOff

S = RunStatus
QUICK = Pace(
    workers=8,
    sweep=3600,
    look_for_others=0.2,
    leave_to_others=0.1,
    lease=1.0,
    busy_retry=0.1,
    back_off=BackOff(0.05, 0.2),
)
"""Without help of the sweep, so that tests see what the events do."""


@dataclass(frozen=True)
class EnsureWork(Effect):
    """Counted by `World`."""


@dataclass(frozen=True)
class Snapshot:
    id: UUID
    status: RunStatus
    fleet: str | None
    exit: int
    stop: str | None
    priority: int
    look_again_at: datetime | None


@dataclass
class World:
    """What the effects touch."""

    counts: Counter[UUID] = field(default_factory=Counter)
    running: set[UUID] = field(default_factory=set)
    act: Callable[[Key], Any] | None = None
    """Called by the effect; an awaitable is awaited."""


async def ensure_work(effect: EnsureWork, world: World, key: Key) -> Facts | None:
    assert_no_transaction()
    assert key.id not in world.running, "two at once"
    world.running.add(key.id)
    try:
        world.counts[key.id] += 1
        if world.act is not None:
            answer = world.act(key)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer is not None:
                return answer  # type: ignore[no-any-return]
        return {"next_triggered_at": None, "resubmission_attempt": 1}
    finally:
        world.running.discard(key.id)


def decide(snapshot: Snapshot, now: datetime) -> Decision[RunStatus]:
    """Done once the effect's fact is there."""
    if snapshot.status.is_finished():
        return Decision(snapshot.status)
    if snapshot.stop is not None:
        return Decision(S.TERMINATED, message="stopped")
    if snapshot.look_again_at is not None and now < snapshot.look_again_at:
        return Decision(snapshot.status, look_again_at=snapshot.look_again_at)
    if snapshot.exit:
        return Decision(S.DONE, message="it worked")
    return Decision(S.RUNNING, effects=(EnsureWork(),))


class MadeUpKind:
    kind = Kind.RUN
    effects: Mapping[type[Effect], Any] = {EnsureWork: ensure_work}

    def __init__(self) -> None:
        self.stale = 0
        self.decide_with: Callable[[Snapshot, datetime], Decision[Any]] = decide

    async def load(self, session: AsyncSession, id: UUID) -> Snapshot | None:
        row = await session.get(RunRow, id)
        if row is None:
            return None
        return Snapshot(
            row.id,
            RunStatus(row.status),
            None,
            row.resubmission_attempt,
            row.stop_requested,
            row.priority,
            row.next_triggered_at,
        )

    def decide(self, snapshot: Snapshot, now: datetime) -> Decision[Any]:
        return self.decide_with(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: Snapshot, decision: Decision[Any], now: datetime
    ) -> None:
        if self.stale:
            self.stale -= 1
            raise StaleSnapshot
        message = f"Run became {decision.status.value}"
        await events.record(session, message, actor=None, targets=[events.Target("run", snapshot.id, "run")])

    def priority(self, snapshot: Snapshot) -> int:
        return snapshot.priority


async def make_runs(database: Database, count: int = 1, **fields: Any) -> list[Key]:
    async with database.transaction() as session:
        user = user_row(f"user-{uuid.uuid4().hex[:8]}")
        project = project_row(user, f"project-{uuid.uuid4().hex[:8]}")
        runs = [run_row(project, user, f"run{number}", **fields) for number in range(count)]
        session.add_all([user, project, *runs])
    return [Key(Kind.RUN, run.id) for run in runs]


async def read(database: Database, key: Key) -> RunRow:
    async with database.session() as session:
        row = await session.get(RunRow, key.id)
    assert row is not None
    return row

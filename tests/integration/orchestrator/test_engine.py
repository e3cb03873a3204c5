"""The loop over a small made-up kind, on both databases."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from tests.integration.orchestrator.made_up import (
    QUICK,
    EnsureWork,
    MadeUpKind,
    Snapshot,
    World,
    make_runs,
    read,
)

from dstack.core.runs import RunStatus
from dstack.server import clock
from dstack.server.db.engine import Database, wake
from dstack.server.db.tables import EventRow, RunRow
from dstack.server.orchestrator.decision import Decision, Key, Kind, TerminalEffectError
from dstack.server.orchestrator.engine import Engine
from dstack.server.orchestrator.leases import Busy
from dstack.server.orchestrator.passes import BackOff
from dstack.server.wakeups import Wakeups


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def kind() -> MadeUpKind:
    return MadeUpKind()


@pytest.fixture
async def engine(database: Database, kind: MadeUpKind, world: World) -> AsyncIterator[Engine]:
    """Not started."""
    engine = Engine(database, [kind], world, pace=QUICK)
    yield engine
    await engine.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async def wait() -> None:
        while not await condition():  # noqa: ASYNC110 - what is waited for is in the database
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), 30)


async def until_status(database: Database, keys: list[Key], status: str) -> None:
    async def all_there() -> bool:
        async with database.session() as session:
            query = select(func.count()).select_from(RunRow)
            count = await session.scalar(
                query.where(RunRow.status == status, RunRow.id.in_([key.id for key in keys]))
            )
        return count == len(keys)

    await until(all_there)


async def test_a_pass_records_performs_and_writes_what_it_saw(
    database: Database, engine: Engine, world: World
) -> None:
    [key] = await make_runs(database)
    outcome = await engine.process(key)
    row = await read(database, key)
    assert (row.status, row.resubmission_attempt, row.lease_token) == ("running", 1, None)
    assert outcome.facts["resubmission_attempt"] == 1
    assert (await engine.process(key)).decision == Decision(RunStatus.DONE, message="it worked")
    async with database.session() as session:
        messages = list(await session.scalars(select(EventRow.message).order_by(EventRow.recorded_at)))
    assert messages == ["Run became running", "Run became done"]
    assert world.counts[key.id] == 1


async def test_a_pass_that_changes_nothing_writes_nothing(database: Database, engine: Engine) -> None:
    [key] = await make_runs(database, status="done")
    before = (await read(database, key)).version
    await engine.process(key)
    assert (await read(database, key)).version == before


async def test_a_key_without_a_row_is_nothing(engine: Engine) -> None:
    outcome = await engine.process(Key(Kind.RUN, uuid.uuid4()))
    assert (outcome.decision, outcome.error) == (None, None)


async def test_started_it_does_what_is_unfinished_to_the_end(
    database: Database, engine: Engine, world: World
) -> None:
    keys = await make_runs(database, 50)
    await engine.start()
    await until_status(database, keys, "done")
    assert set(world.counts.values()) == {1}


async def test_a_write_wakes_after_its_commit(database: Database, engine: Engine) -> None:
    await engine.start()
    keys = await make_runs(database, 3)
    async with database.transaction() as session:
        wake(session, *(f"run:{key.id}" for key in keys), "run:nonsense", "routes")
    await until_status(database, keys, "done")


async def test_a_failed_effect_is_tried_again_with_back_off_and_counted(
    database: Database, engine: Engine, world: World
) -> None:
    failures = 3
    seen: list[tuple[int, str | None]] = []

    async def fail(key: Key) -> None:
        row = await read(database, key)
        seen.append((row.attempts, row.last_error))
        if len(seen) <= failures:
            raise ConnectionError("no answer")

    world.act = fail
    [key] = await make_runs(database)
    await engine.start()
    await until_status(database, [key], "done")
    assert seen == [(0, None), *((number, "ConnectionError: no answer") for number in (1, 2, 3))]
    row = await read(database, key)
    assert (row.attempts, row.last_error, row.wake_at) == (0, None, None)


async def test_a_pass_that_only_waits_for_the_retry_forgets_no_failure(
    database: Database, kind: MadeUpKind, world: World
) -> None:
    def fail(key: Key) -> None:
        raise ConnectionError("no answer")

    world.act = fail
    [key] = await make_runs(database)
    patient = Engine(database, [kind], world, pace=replace(QUICK, back_off=BackOff(60, 60)))
    await patient.process(key)
    retry_at = (await read(database, key)).wake_at

    def wait(snapshot: Snapshot, now: datetime) -> Decision[Any]:
        return Decision(snapshot.status, look_again_at=retry_at)

    kind.decide_with = wait
    await patient.process(key)
    row = await read(database, key)
    assert (row.attempts, row.last_error, row.wake_at) == (1, "ConnectionError: no answer", retry_at)
    kind.decide_with = lambda snapshot, now: Decision(snapshot.status)
    await patient.process(key)
    row = await read(database, key)
    assert (row.attempts, row.last_error, row.wake_at) == (0, None, None)
    await patient.stop()


async def test_a_terminal_failure_is_a_fact_for_the_next_decision(
    database: Database, engine: Engine, world: World
) -> None:
    def refuse(key: Key) -> None:
        raise TerminalEffectError("quota", {"stop_requested": "server_error"})

    world.act = refuse
    [key] = await make_runs(database)
    await engine.start()
    await until_status(database, [key], "terminated")
    assert world.counts[key.id] == 1
    assert (await read(database, key)).attempts == 0


async def test_an_outdated_snapshot_is_loaded_again(database: Database, engine: Engine, kind: MadeUpKind) -> None:
    kind.stale = 2
    [key] = await make_runs(database)
    await engine.process(key)
    row = await read(database, key)
    assert (row.status, row.version) == ("running", 2)


async def test_a_rule_that_fails_backs_off_and_stops_no_one_else(
    database: Database, engine: Engine, kind: MadeUpKind
) -> None:
    bad, *good = await make_runs(database, 3)
    well = kind.decide_with

    def decide(snapshot: Snapshot, now: datetime) -> Decision[Any]:
        if snapshot.id == bad.id:
            raise AssertionError("a mistake")
        return well(snapshot, now)

    kind.decide_with = decide
    await engine.start()
    await until_status(database, good, "done")

    async def has_failed_twice() -> bool:
        return (await read(database, bad)).attempts >= 2

    await until(has_failed_twice)
    assert (await read(database, bad)).last_error == "AssertionError: a mistake"


async def test_timers_survive_a_restart(database: Database, kind: MadeUpKind, world: World) -> None:
    later = clock.now() + timedelta(seconds=0.5)
    [key] = await make_runs(database, next_triggered_at=later)
    first = Engine(database, [kind], world, pace=QUICK)
    await first.process(key)
    await first.stop()
    row = await read(database, key)
    assert (row.status, row.wake_at) == ("submitted", later)
    second = Engine(database, [kind], world, pace=QUICK)
    await second.start()
    await until_status(database, [key], "done")
    await second.stop()
    assert clock.now() >= later


async def test_a_rest_begins_when_the_effect_has_ended(database: Database, kind: MadeUpKind, world: World) -> None:
    """A server that stops in the middle leaves the key due; one that fails tries again before the rest is over."""
    later = clock.now() + timedelta(hours=1)
    kind.decide_with = lambda snapshot, now: Decision(snapshot.status, effects=(EnsureWork(),), rest_until=later)
    [key] = await make_runs(database)
    entered = asyncio.Event()

    async def hang(_: Key) -> None:
        entered.set()
        await asyncio.Event().wait()

    world.act = hang
    first = Engine(database, [kind], world, pace=replace(QUICK, drain=0))
    await first.start()
    await entered.wait()
    await first.stop()
    assert (await read(database, key)).wake_at is None

    def fail(_: Key) -> None:
        raise ConnectionError("no answer")

    world.act = fail
    second = Engine(database, [kind], world, pace=replace(QUICK, back_off=BackOff(60, 60)))
    await second.process(key)
    retry_at = (await read(database, key)).wake_at
    assert retry_at is not None
    assert retry_at < later
    world.act = lambda _: {}
    await second.process(key)
    row = await read(database, key)
    assert (row.wake_at, row.attempts, world.counts[key.id]) == (later, 0, 3)
    await second.stop()


async def test_a_wake_during_the_effect_is_not_lost(database: Database, engine: Engine, world: World) -> None:
    [key] = await make_runs(database)

    async def stop_meanwhile(_: Key) -> dict[str, Any]:
        async with database.transaction() as session:
            await session.execute(update(RunRow).values(stop_requested="stopped_by_user"))
            wake(session, f"run:{key.id}")
        await asyncio.sleep(0.05)
        return {"next_triggered_at": None}

    world.act = stop_meanwhile
    await engine.start()
    await until_status(database, [key], "terminated")


async def test_stopping_lets_a_running_pass_end(database: Database, engine: Engine, world: World) -> None:
    [key] = await make_runs(database)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def linger(_: Key) -> None:
        entered.set()
        await go_on.wait()

    world.act = linger
    await engine.start()
    await entered.wait()
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    go_on.set()
    await stopping
    row = await read(database, key)
    assert (row.resubmission_attempt, row.lease_token) == (1, None)


async def test_two_engines_share_the_work_and_do_nothing_twice(postgres_url: str, world: World) -> None:
    one, two = await Database.open(postgres_url), await Database.open(postgres_url)
    engines = [Engine(database, [MadeUpKind()], world, pace=QUICK) for database in (one, two)]
    keys = await make_runs(one, 60)
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        await until_status(one, keys, "done")
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))
        await one.close()
        await two.close()
    assert set(world.counts.values()) == {1}


async def test_a_key_that_another_replica_works_on_is_busy(postgres_url: str, world: World) -> None:
    one, two = await Database.open(postgres_url), await Database.open(postgres_url)
    first, second = (Engine(database, [MadeUpKind()], world, pace=QUICK) for database in (one, two))
    [key] = await make_runs(one)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def linger(_: Key) -> None:
        entered.set()
        await go_on.wait()

    world.act = linger
    try:
        working = asyncio.create_task(first.process(key))
        await entered.wait()
        await asyncio.sleep(QUICK.lease * 1.5)  # longer than the lease: it is renewed
        assert isinstance((await second.process(key)).error, Busy)
        go_on.set()
        assert (await working).error is None
        assert (await second.process(key)).decision == Decision(RunStatus.DONE, message="it worked")
    finally:
        await first.stop()
        await second.stop()
        await one.close()
        await two.close()


async def wake_and_wait(publisher: Database, hearer: Database, key: Key) -> None:
    """Returns once the wake-up has crossed from one replica to the other."""
    name, heard = f"run:{key.id}", asyncio.Event()
    deaf = hearer.wakeups.listen(lambda told: heard.set() if told == name else None)
    async with publisher.transaction() as session:
        wake(session, name)
    await asyncio.wait_for(heard.wait(), 30)
    deaf()


@pytest.mark.parametrize("does_the_work", [True, False])
async def test_what_another_replica_woke_is_left_to_it_for_a_while(
    postgres_url: str, world: World, *, does_the_work: bool
) -> None:
    """The other one has no engine: it is as if it died right after its commit."""
    one, two = await Database.open(postgres_url), await Database.open(postgres_url)
    seconds = 3600 if does_the_work else 0.1
    engine = Engine(two, [MadeUpKind()], world, pace=replace(QUICK, leave_to_others=seconds))
    try:
        await engine.start()
        theirs, ours = await make_runs(one, 2)
        await wake_and_wait(one, two, theirs)
        engine.wake(ours)
        await until_status(two, [ours], "done")
        if does_the_work:
            assert (await read(two, theirs)).status == "submitted"
        else:
            await until_status(two, [theirs], "done")
    finally:
        await engine.stop()
        await one.close()
        await two.close()


async def test_what_another_replica_wakes_during_a_pass_is_looked_at_right_after_it(
    postgres_url: str, world: World
) -> None:
    one, two = await Database.open(postgres_url), await Database.open(postgres_url)
    engine = Engine(two, [MadeUpKind()], world, pace=replace(QUICK, leave_to_others=3600))
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def linger(_: Key) -> dict[str, Any]:
        entered.set()
        await go_on.wait()
        return {}

    world.act = linger
    try:
        await engine.start()
        [key] = await make_runs(one)
        engine.wake(key)
        await entered.wait()
        async with one.transaction() as session:
            await session.execute(update(RunRow).where(RunRow.id == key.id).values(stop_requested="x"))
        await wake_and_wait(one, two, key)
        go_on.set()
        await until_status(two, [key], "terminated")
    finally:
        await engine.stop()
        await one.close()
        await two.close()


async def test_a_dead_replicas_key_is_taken_over_and_its_late_result_refused(
    postgres_url: str, world: World
) -> None:
    """The first engine's renewing is stopped, as if its process stood still; then its effect ends late."""
    one, two = await Database.open(postgres_url), await Database.open(postgres_url)
    late = World()
    first = Engine(one, [MadeUpKind()], late, pace=QUICK)
    second = Engine(two, [MadeUpKind()], world, Wakeups(), pace=QUICK)
    [key] = await make_runs(one)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def linger(_: Key) -> dict[str, Any]:
        entered.set()
        await go_on.wait()
        return {"priority": 77}

    late.act = linger
    try:
        working = asyncio.create_task(first.process(key))
        await entered.wait()
        await first._leases.stop()
        await second.start()
        await until_status(two, [key], "done")
        go_on.set()
        await working
        row = await read(two, key)
        assert (row.status, row.priority) == ("done", 0)
    finally:
        await first.stop()
        await second.stop()
        await one.close()
        await two.close()

"""The work queue: order, folding, one worker a key."""

from __future__ import annotations

import asyncio
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from dstack.server.orchestrator.decision import Key, Kind
from dstack.server.orchestrator.queue import WorkQueue


def key(number: int) -> Key:
    return Key(Kind.JOB, UUID(int=number))


def test_higher_priority_comes_first_then_the_older() -> None:
    queue = WorkQueue()
    for number, priority in [(1, 0), (2, 5), (3, 0), (4, 5)]:
        queue.put(key(number), priority)
    assert [queue.get_nowait() for _ in range(5)] == [key(2), key(4), key(1), key(3), None]


def test_a_key_put_twice_waits_once_and_may_rise() -> None:
    queue = WorkQueue()
    queue.put(key(1))
    queue.put(key(2))
    queue.put(key(2), 9)
    queue.put(key(1))
    assert len(queue) == 2
    assert [queue.get_nowait() for _ in range(3)] == [key(2), key(1), None]


def test_a_key_woken_while_it_is_worked_on_comes_back_once() -> None:
    queue = WorkQueue()
    queue.put(key(1))
    assert queue.get_nowait() == key(1)
    queue.put(key(1))
    queue.put(key(1))
    assert queue.get_nowait() is None
    queue.done(key(1))
    assert queue.get_nowait() == key(1)
    queue.done(key(1))
    assert queue.get_nowait() is None


async def test_a_cancelled_getter_does_not_take_the_wake_of_another() -> None:
    queue = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.put(key(1))
    first.cancel()
    assert await asyncio.wait_for(second, 5) == key(1)


Operation = st.tuples(st.sampled_from(["put", "get", "done"]), st.integers(0, 4), st.integers(-2, 2))


@given(st.lists(Operation, max_size=80))
def test_nothing_put_is_lost_and_nothing_is_worked_on_twice_at_once(
    operations: list[tuple[str, int, int]],
) -> None:
    queue = WorkQueue()
    working: list[Key] = []
    owed: set[Key] = set()
    for what, number, priority in operations:
        if what == "put":
            queue.put(key(number), priority)
            owed.add(key(number))
        elif what == "get":
            got = queue.get_nowait()
            assert (got is None) == (not owed - set(working))
            if got is not None:
                assert got not in working
                working.append(got)
                owed.discard(got)
        elif working:
            queue.done(working.pop(number % len(working)))
        assert len(queue) == len(owed)
        assert queue.working == len(working)


async def test_a_kind_with_a_limit_leaves_the_others_their_workers() -> None:
    queue = WorkQueue(at_most={Kind.INSTANCE: 1})
    hosts = [Key(Kind.INSTANCE, UUID(int=number)) for number in (8, 9)]
    for host in hosts:
        queue.put(host, 5)
    queue.put(key(1))
    assert [queue.get_nowait() for _ in range(3)] == [hosts[0], key(1), None]
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.done(hosts[0])
    assert await asyncio.wait_for(waiting, 5) == hosts[1]


def test_a_limit_folds_and_returns_keys_as_ever() -> None:
    queue = WorkQueue(at_most={Kind.JOB: 1})
    queue.put(key(1))
    queue.put(key(2))
    assert queue.get_nowait() == key(1)
    queue.put(key(1))
    assert queue.get_nowait() is None
    queue.done(key(1))
    assert [queue.get_nowait(), queue.get_nowait()] == [key(2), None]
    queue.done(key(2))
    assert queue.get_nowait() == key(1)

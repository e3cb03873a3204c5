"""Sessions, transactions, wake-ups, and what is said when the database cannot be used."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from tests.fixtures.rows import user_row

from dstack.server.db.engine import Database, wake
from dstack.server.db.errors import DatabaseBusy, DatabaseConflict, DatabaseError, DatabaseUnreachable
from dstack.server.db.tables import UserRow
from dstack.server.guards import InsideTransaction, assert_no_transaction
from dstack.server.wakeups import Wakeups


async def test_what_a_transaction_writes_is_read_by_the_next_session(database: Database) -> None:
    user = user_row()
    async with database.transaction() as session:
        session.add(user)
    async with database.session() as session:
        found = await session.get(UserRow, user.id)
    assert found is not None
    assert found.created_at == user.created_at


async def test_wakes_are_published_after_the_commit_once_each(database: Database) -> None:
    heard: list[str] = []
    database.wakeups.listen(heard.append)
    async with database.transaction() as session:
        wake(session, "a", "b")
        wake(session, "a")
        assert heard == []
    assert heard == ["a", "b"]


async def test_a_failed_transaction_writes_nothing_and_wakes_nobody(database: Database) -> None:
    heard: list[str] = []
    database.wakeups.listen(heard.append)

    async def fail() -> None:
        async with database.transaction() as session:
            session.add(user_row())
            await session.flush()
            wake(session, "a")
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(UserRow)) == 0
    assert heard == []


async def test_many_writers_all_get_their_turn(database: Database) -> None:
    async def write(number: int) -> None:
        async with database.transaction() as session:
            session.add(user_row(f"user{number}"))

    await asyncio.gather(*(write(number) for number in range(50)))
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(UserRow)) == 50


async def test_a_deadlock_ends_as_a_conflict_for_one_and_goes_unnoticed_for_the_other(postgres_url: str) -> None:
    database = await Database.open(postgres_url)
    rows = [user_row("one"), user_row("two")]
    async with database.transaction() as session:
        session.add_all(rows)
    ids = [row.id for row in rows]
    holders: list[UUID] = []
    both_hold = asyncio.Event()

    async def write(first: UUID, second: UUID) -> None:
        async with database.transaction() as session:
            await session.execute(update(UserRow).where(UserRow.id == first).values(email="a"))
            holders.append(first)
            if len(holders) == len(ids):
                both_hold.set()
            await both_hold.wait()
            await session.execute(update(UserRow).where(UserRow.id == second).values(email="b"))

    ends = await asyncio.gather(write(*ids), write(*reversed(ids)), return_exceptions=True)
    await database.close()
    assert [type(end) for end in ends if end] == [DatabaseConflict]


async def test_a_cancelled_writer_leaves_the_database_usable(database: Database) -> None:
    entered = asyncio.Event()

    async def hang() -> None:
        async with database.transaction() as session:
            session.add(user_row())
            await session.flush()
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction() as session:
        assert await session.scalar(select(func.count()).select_from(UserRow)) == 0


async def test_the_network_and_a_second_transaction_are_refused_inside_one(database: Database) -> None:
    async with database.transaction():
        with pytest.raises(InsideTransaction, match="commit first"):
            assert_no_transaction("the agent")
        with pytest.raises(RuntimeError, match="inside a transaction"):
            async with database.transaction():
                pass
    assert_no_transaction()


async def test_wakes_cross_from_one_replica_to_another_and_do_not_come_back(postgres_url: str) -> None:
    first, second = Wakeups(), Wakeups()
    one, two = await Database.open(postgres_url, first), await Database.open(postgres_url, second)
    heard_by_one: list[str] = []
    heard_by_two: list[str] = []
    complete = asyncio.Event()
    names = [f"job:{number:036d}" for number in range(1000)]

    def hear(name: str) -> None:
        heard_by_two.append(name)
        if len(heard_by_two) == len(names):
            complete.set()

    first.listen(heard_by_one.append)
    second.listen(hear)
    try:
        async with one.transaction() as session:
            wake(session, *names)
        await asyncio.wait_for(complete.wait(), 20)
        answered = asyncio.Event()
        first.listen(lambda name: answered.set() if name == "answer" else None)
        second.publish(["answer"])
        await asyncio.wait_for(answered.wait(), 20)
    finally:
        await one.close()
        await two.close()
    assert heard_by_two == [*names, "answer"]
    assert heard_by_one == [*names, "answer"]


async def test_the_carrier_connects_again_and_tells_that_it_may_have_missed_something(postgres_url: str) -> None:
    database = await Database.open(postgres_url)
    missed = asyncio.Event()
    database.wakeups.listen(lambda name: missed.set() if name == "missed" else None)
    try:
        async with database.transaction() as session:
            from_others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            connection = await session.connection()
            await connection.exec_driver_sql(
                f"{from_others} WHERE application_name = 'dstack-wakeups' AND datname = current_database()"
            )
        await asyncio.wait_for(missed.wait(), 20)
    finally:
        await database.close()


async def test_a_second_server_on_the_same_file_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/sqlite.db"
    database = await Database.open(url)
    try:
        with pytest.raises(DatabaseBusy, match=f"locked by another server \\(process {os.getpid()}"):
            await Database.open(url)
    finally:
        await database.close()
    await (await Database.open(url)).close()


async def test_an_unreachable_postgresql_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql+asyncpg://me:hunter2@/dstack?host={tmp_path}"
    with pytest.raises(DatabaseUnreachable, match="Cannot connect to the database dstack on") as caught:
        await Database.open(url)
    assert "hunter2" not in str(caught.value)


async def test_a_missing_postgresql_database_is_named(postgres_url: str) -> None:
    with pytest.raises(DatabaseUnreachable, match='database "nope" does not exist'):
        await Database.open(postgres_url.replace(postgres_url.split("/")[3].split("?")[0], "nope"))


@pytest.mark.parametrize("url", ["mysql://x", "nonsense", "sqlite+aiosqlite:///:memory:"])
async def test_other_urls_are_refused_with_what_is_expected(url: str) -> None:
    with pytest.raises(DatabaseError, match=r"sqlite\+aiosqlite:////path/to/file.db"):
        await Database.open(url)


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="Cannot make the folder"):
        await Database.open(f"sqlite+aiosqlite:///{tmp_path}/file/sqlite.db")

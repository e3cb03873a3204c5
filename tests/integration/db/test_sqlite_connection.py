"""Connections that read a result whole behave as SQLAlchemy expects of a driver."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from dstack.server.db import sqlite
from dstack.server.db.engine import Database

LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT max(i) FROM n"


async def test_statements_bring_rows_counts_and_errors(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/x.db", migrate=False)
    try:
        async with database.transaction() as session:
            await session.execute(text("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)"))
            await session.execute(text("INSERT INTO t (a, b) VALUES (:a, 'x')"), [{"a": 1}, {"a": 2}])
            changed = await session.execute(text("UPDATE t SET b = 'y' WHERE a = 1 RETURNING b"))
            assert changed.scalars().all() == ["y"]
        with pytest.raises(IntegrityError):
            async with database.transaction() as session:
                await session.execute(text("INSERT INTO t (a, b) VALUES (1, 'z')"))
        async with database.session() as session:
            rows = (await session.execute(text("SELECT a, b FROM t ORDER BY a"))).all()
            assert rows == [(1, "y"), (2, "x")]
            assert (await session.execute(text("SELECT a FROM t WHERE a = 3"))).first() is None
    finally:
        await database.close()


@pytest_asyncio.fixture
async def connection(tmp_path: Path) -> AsyncIterator[sqlite.Connection]:
    """With an empty table `t` of numbers."""
    connection = await sqlite.connect(tmp_path / "x.db", check_same_thread=False, isolation_level=None)
    await connection.run(False, "PRAGMA journal_mode=WAL", ())
    await connection.run(False, "CREATE TABLE t (a INTEGER)", ())
    yield connection
    await connection.close()


async def test_a_long_read_is_given_up_in_the_event_loop_and_made_in_the_thread(
    connection: sqlite.Connection,
) -> None:
    made = connection._made
    assert (await connection.run(False, "SELECT 1", ())).rows == [(1,)]
    assert connection._made == made
    assert (await connection.run(False, f"SELECT * FROM ({LONG})", ())).rows == [(200_000,)]
    assert connection._made == made + 1


async def test_a_statement_comes_after_one_that_nobody_waits_for_any_more(connection: sqlite.Connection) -> None:
    long = asyncio.ensure_future(connection.run(False, f"INSERT INTO t {LONG}".replace("INSERT", "insert"), ()))
    await asyncio.sleep(0)
    long.cancel()
    assert (await connection.run(False, "SELECT a FROM t", ())).rows == [(200_000,)]


async def test_who_waits_for_a_foreign_writer_keeps_nobody_else_waiting(
    connection: sqlite.Connection, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.ensure_future(connection.run(False, "BEGIN IMMEDIATE", ()))
    await asyncio.sleep(0)
    assert not waiting.done()
    other.execute("COMMIT")
    other.close()
    await waiting
    await connection.rollback()


async def test_the_log_goes_into_the_file_from_time_to_time(
    connection: sqlite.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_EVERY", 5)
    await connection.run(False, "PRAGMA wal_autocheckpoint=0", ())
    size = (tmp_path / "x.db").stat().st_size
    for number in range(5):
        assert (tmp_path / "x.db").stat().st_size == size
        await connection.run(False, "BEGIN IMMEDIATE", ())
        await connection.run(True, "INSERT INTO t VALUES (?)", [(number,)] * 50)
        await connection.run(False, f"CREATE TABLE u{number} (a INTEGER)", ())
        await connection.commit()
    assert (tmp_path / "x.db").stat().st_size > size


async def test_turns_are_taken_one_at_a_time_and_none_is_lost() -> None:
    turn, inside, most = sqlite.Turn(), 0, 0

    async def take() -> None:
        nonlocal inside, most
        async with turn:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    tasks = [asyncio.ensure_future(take()) for _ in range(20)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (inside, most) == (0, 1)
    assert [task.cancelled() for task in tasks].count(True) == 1

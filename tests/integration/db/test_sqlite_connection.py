"""Connections that read a result whole behave as SQLAlchemy expects of a driver."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from dstack.server.db.engine import Database


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

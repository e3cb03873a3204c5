"""SQLite connections on which each statement is one trip to the connection's thread.

`aiosqlite` makes four: for the cursor, the statement, its rows and the cursor's end. Each of them waits for its
turn with the event loop, so under load they cost more than the statement itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiosqlite


@dataclass(frozen=True)
class _Result:
    """All that a statement brought back."""

    description: Any
    rowcount: int
    lastrowid: int | None
    rows: list[Any]


_NOTHING = _Result(None, -1, None, [])


def _run(connection: sqlite3.Connection, many: bool, sql: str, parameters: Sequence[Any]) -> _Result:
    """In the connection's thread."""
    cursor = connection.cursor()
    try:
        if many:
            cursor.executemany(sql, parameters)
        else:
            cursor.execute(sql, parameters)
        rows = cursor.fetchall() if cursor.description else []
        return _Result(cursor.description, cursor.rowcount, cursor.lastrowid, rows)
    finally:
        cursor.close()


class Connection(aiosqlite.Connection):
    """As `aiosqlite`'s, with cursors that read a result whole."""

    def cursor(self) -> Cursor:  # type: ignore[override] # what SQLAlchemy uses of one
        return Cursor(self)

    async def run(self, many: bool, sql: str, parameters: Sequence[Any]) -> _Result:
        result: _Result = await self._execute(_run, self._conn, many, sql, parameters)  # type: ignore[no-untyped-call]
        return result


class Cursor:
    """The part of a cursor that SQLAlchemy's adapter uses; nothing but `execute` and `executemany` waits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._result = _NOTHING
        self.arraysize = 1

    async def __aenter__(self) -> Cursor:
        return self

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        self._result = await self._connection.run(False, sql, parameters)
        return self

    async def executemany(self, sql: str, parameters: Sequence[Any]) -> Cursor:
        self._result = await self._connection.run(True, sql, parameters)
        return self

    async def fetchall(self) -> list[Any]:
        return self._result.rows

    async def close(self) -> None:
        """There is nothing left to close."""

    @property
    def description(self) -> Any:
        return self._result.description

    @property
    def rowcount(self) -> int:
        return self._result.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._result.lastrowid


async def connect(*args: Any, **kwargs: Any) -> Connection:
    """Opens one; the arguments are those of `sqlite3.connect`."""
    opening: Callable[[], sqlite3.Connection] = partial(sqlite3.connect, *args, **kwargs)
    connection = Connection(opening, iter_chunk_size=64)
    connection._thread.daemon = True  # as SQLAlchemy does: a forgotten connection must not keep the process
    await connection
    return connection

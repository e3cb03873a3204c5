"""SQLite connections: quick statements run in the event loop, slow ones in the connection's thread.

`aiosqlite` runs all of them in the thread, with four trips there for each. A trip waits for its turn with
the event loop and with the interpreter's lock: on a busy server that takes many times as long as the statement.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiosqlite

BUSY_TIMEOUT_MS = 10_000
"""How long a connection waits for a foreign process (a backup) that holds the file; never in the event loop."""
CHECKPOINT_EVERY = 1000
"""Commits, some ten pages each. The write-ahead log then goes into the database file: that waits for the disk,
in the thread, and everybody who writes waits for it."""
MOST_STEPS = 20_000
"""Of SQLite's machine, that a statement which reads takes in the event loop: about a millisecond."""
MOST_ROWS = 50
"""That a statement writes in the event loop."""
MOST_BYTES = 65_536
"""Of a value that is written in the event loop."""


@dataclass(frozen=True)
class _Result:
    """All that a statement brought back."""

    description: Any
    rowcount: int
    lastrowid: int | None
    rows: list[Any]


_NOTHING = _Result(None, -1, None, [])


def _run(connection: sqlite3.Connection, many: bool, sql: str, parameters: Sequence[Any]) -> _Result:
    """In whatever thread it is called."""
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

    _sent = 0
    """How many calls the thread was given."""
    _made = 0
    """How many of them it has made."""
    _commits = 0
    """Since the last checkpoint."""

    def cursor(self) -> Cursor:  # type: ignore[override] # what SQLAlchemy uses of one
        return Cursor(self)

    async def run(self, many: bool, sql: str, parameters: Sequence[Any]) -> _Result:
        if self._is_idle:
            result = self._run_here(many, sql, parameters)
            if result is not None:
                return result
        slow: _Result = await self._execute(_run, self._conn, many, sql, parameters)
        return slow

    @property
    def _is_idle(self) -> bool:
        """The thread has nothing to do, so that the connection may be used outside of it."""
        return self._made == self._sent

    def _run_here(self, many: bool, sql: str, parameters: Sequence[Any]) -> _Result | None:
        """None when the statement is, or may be, too slow for the event loop."""
        if sql.startswith("BEGIN"):
            return self._begin_here(sql)
        if sql.startswith("SELECT"):
            return self._read_here(sql, parameters)
        if sql.startswith(("INSERT", "UPDATE")) and _is_small(many, parameters):
            return _run(self._conn, many, sql, parameters)
        return None

    def _begin_here(self, sql: str) -> _Result | None:
        """None when another process is writing."""
        _run(self._conn, False, "PRAGMA busy_timeout=0", ())
        try:
            return _run(self._conn, False, sql, ())
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return None
        finally:
            _run(self._conn, False, f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}", ())

    def _read_here(self, sql: str, parameters: Sequence[Any]) -> _Result | None:
        """None when it took too many steps and was given up."""
        is_long = False

        def give_up() -> bool:
            nonlocal is_long
            is_long = True
            return True

        self._conn.set_progress_handler(give_up, MOST_STEPS)
        try:
            return _run(self._conn, False, sql, parameters)
        except sqlite3.OperationalError:
            if not is_long:
                raise
            return None
        finally:
            self._conn.set_progress_handler(None, 0)

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the thread, where it goes on even if nobody waits for it any more."""
        self._sent += 1
        return await super()._execute(self._make, partial(fn, *args, **kwargs))  # type: ignore[no-untyped-call]

    def _make(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        finally:
            self._made += 1

    async def commit(self) -> None:
        """Hands what was written to the system: without a checkpoint nobody waits for the disk."""
        self._commits += 1
        if self._is_idle and self._commits < CHECKPOINT_EVERY:
            self._conn.commit()
        else:
            self._commits = 0
            await self._execute(_commit_and_checkpoint, self._conn)

    async def rollback(self) -> None:
        """Of nothing, is nothing."""
        if not self._is_idle or self.in_transaction:
            await super().rollback()


def _commit_and_checkpoint(connection: sqlite3.Connection) -> None:
    """What readers still look at in the log stays there until the next time."""
    connection.commit()
    _run(connection, False, "PRAGMA wal_checkpoint(PASSIVE)", ())


def _is_small(many: bool, parameters: Sequence[Any]) -> bool:
    """Whether writing it takes next to no time."""
    if many:
        return len(parameters) <= MOST_ROWS
    return all(not isinstance(value, (str, bytes)) or len(value) <= MOST_BYTES for value in parameters)


class Cursor:
    """The part of a cursor that SQLAlchemy's adapter uses; nothing but `execute` and `executemany` may wait."""

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


class Turn:
    """`async with`: of those who write, one at a time. Who comes while nobody has it goes at once; `asyncio.Lock`
    would have them queue behind those it has just woken, and let in one for each round of the event loop."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> None:
        while self._is_taken:
            freed = asyncio.get_running_loop().create_future()
            self._waiting.append(freed)
            await freed
        self._is_taken = True

    async def __aexit__(self, *_error: object) -> None:
        self._is_taken = False
        waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if not freed.done():
                freed.set_result(None)

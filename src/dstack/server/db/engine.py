"""The database: sessions that read, transactions that write, wake-ups after the commit.

Start reading at `Database`. Reads run in autocommit, one statement after the other; a write transaction
starts as a writer at once (`BEGIN IMMEDIATE` on SQLite), so it can never fail half-way for want of the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from dstack.server.db import schema, sqlite
from dstack.server.db.errors import DatabaseError, translate, unreachable
from dstack.server.db.lockfile import LockFile
from dstack.server.guards import inside_transaction, is_inside_transaction
from dstack.server.wakeups import Wakeups

if TYPE_CHECKING:
    from dstack.server.db.notify import Carrier

SQLITE_READERS = 4
"""Connections for reading; each is a thread and a page cache, so few."""
POSTGRES_POOL = 10
POSTGRES_OVERFLOW = 10
CONNECT_TIMEOUT_S = 10.0

_WAKE = "wake"


class Database:
    """One database and its connections. `await Database.open(url, wakeups)`; `await close()` at the end."""

    def __init__(self, reader: AsyncEngine, writer: AsyncEngine, wakeups: Wakeups, where: str) -> None:
        self._reader = reader
        self._writer = writer
        self._where = where
        self._turn: AbstractAsyncContextManager[Any] = (
            sqlite.Turn() if writer.dialect.name == "sqlite" else contextlib.nullcontext()
        )
        self._lock_file: LockFile | None = None
        self._carrier: Carrier | None = None
        self.wakeups = wakeups
        self.dialect = writer.dialect.name
        """`sqlite` or `postgresql`."""

    @classmethod
    async def open(cls, url: str, wakeups: Wakeups | None = None, *, migrate: bool = True) -> Database:
        """Connects, brings the schema up to date and, on PostgreSQL, joins the other replicas' wake-ups.

        Raises `DatabaseError`s whose text says what is wrong and what to do.
        """
        parsed = _parse(url)
        wakeups = wakeups or Wakeups()
        database = _open_sqlite(parsed, wakeups) if _is_sqlite(parsed) else _open_postgresql(parsed, wakeups)
        try:
            await database._start(parsed, migrate=migrate)
        except BaseException:
            await database.close()
            raise
        return database

    async def _start(self, url: URL, *, migrate: bool) -> None:
        connection = self._writer.connect()
        async with self._connecting():
            await connection.start()
        try:
            if migrate:
                async with self._translating():
                    await schema.ensure(connection)
        finally:
            await connection.close()
        if self.dialect == "postgresql":
            from dstack.server.db.notify import Carrier  # noqa: PLC0415 - asyncpg is not loaded for SQLite

            self._carrier = Carrier(url, self.wakeups)
            await self._carrier.start()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """For reading. Each statement sees what was committed when it began."""
        async with AsyncSession(self._reader, expire_on_commit=False, autoflush=False) as session:
            async with self._connecting():
                await session.connection()
            async with self._translating():
                yield session

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """For writing. Commits at the end of the block; then publishes what `wake` collected. Keep it short:
        on SQLite everybody else's writing waits."""
        if is_inside_transaction():
            raise RuntimeError("a transaction inside a transaction would wait for itself; pass the session on")
        async with self._turn:
            session = AsyncSession(self._writer, expire_on_commit=False)
            async with session:
                async with self._connecting():
                    await session.connection()
                with inside_transaction():
                    async with self._translating():
                        yield session
                        await self._commit(session)
        self._publish(session)

    async def _commit(self, session: AsyncSession) -> None:
        try:
            await session.commit()
        except asyncio.CancelledError:
            # It may have been committed all the same: a wake-up too many does no harm, a missing one does.
            self._publish(session)
            raise

    def _publish(self, session: AsyncSession) -> None:
        names = session.info.pop(_WAKE, None)
        if names:
            self.wakeups.publish(names)

    @asynccontextmanager
    async def _connecting(self) -> AsyncIterator[None]:
        try:
            yield
        except (DBAPIError, OSError, asyncio.TimeoutError, NoFreeConnection) as error:
            raise unreachable(error, self._where) from error
        except Exception as error:
            # asyncpg raises its own kind while connecting (wrong password, no such database).
            if type(error).__module__.startswith("asyncpg."):
                raise unreachable(error, self._where) from error
            raise

    @asynccontextmanager
    async def _translating(self) -> AsyncIterator[None]:
        try:
            yield
        except DBAPIError as error:
            ours = translate(error, self._where)
            if ours is None:
                raise
            raise ours from error

    async def close(self) -> None:
        """Ends all connections; releases the lock file last."""
        if self._carrier is not None:
            await self._carrier.stop()
        await self._reader.dispose()
        await self._writer.dispose()
        if self._lock_file is not None:
            self._lock_file.release()


def wake(session: AsyncSession, *names: str) -> None:
    """Asks for these names to be published once the transaction of `session` is committed; not if it fails."""
    collected = session.info.setdefault(_WAKE, {})
    for name in names:
        collected[name] = None


def _parse(url: str) -> URL:
    expected = "expected sqlite+aiosqlite:////path/to/file.db or postgresql+asyncpg://user:password@host/name"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError(f"The database URL is not a URL; {expected}") from None
    if parsed.drivername not in ("sqlite+aiosqlite", "postgresql+asyncpg"):
        raise DatabaseError(f"The database URL begins with {parsed.drivername!r}; {expected}")
    if _is_sqlite(parsed) and parsed.database in (None, "", ":memory:"):
        raise DatabaseError("SQLite needs a file: sqlite+aiosqlite:////path/to/file.db")
    return parsed


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _open_sqlite(url: URL, wakeups: Wakeups) -> Database:
    path = Path(str(url.database)).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"Cannot make the folder of the database {path}: {error.strerror}") from error
    lock_file = LockFile.acquire(path.with_name(path.name + ".lock"))
    connect_args = {"async_creator_fn": sqlite.connect}
    writer = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=None, connect_args=connect_args)
    reader = create_async_engine(
        url,
        pool_size=SQLITE_READERS,
        max_overflow=0,
        isolation_level="AUTOCOMMIT",
        connect_args=connect_args,
        **_NO_RESET,
    )
    event.listen(writer.sync_engine, "connect", _prepare_sqlite_writer)
    event.listen(writer.sync_engine, "begin", _begin_immediate)
    event.listen(reader.sync_engine, "connect", _prepare_sqlite)
    database = Database(reader, writer, wakeups, str(path))
    database._lock_file = lock_file
    return database


_NO_RESET: dict[str, Any] = {"pool_reset_on_return": None, "skip_autocommit_rollback": True}
"""In autocommit there is nothing to roll back: saves two trips to the connection's thread a read."""


def _open_postgresql(url: URL, wakeups: Wakeups) -> Database:
    where = f"{url.database} on {url.host or url.query.get('host') or 'localhost'}"
    engine = create_async_engine(
        url,
        pool_size=POSTGRES_POOL,
        max_overflow=POSTGRES_OVERFLOW,
        pool_recycle=1800,
        pool_use_lifo=True,
        skip_autocommit_rollback=True,
        connect_args={"timeout": CONNECT_TIMEOUT_S, "server_settings": {"application_name": "dstack"}},
    )
    reader = engine.execution_options(isolation_level="AUTOCOMMIT")
    return Database(reader, engine, wakeups, where)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """WAL survives `kill -9` whole at `synchronous=NORMAL`: what the kernel was given is not lost with the
    process. Only a power cut may take back the last commits, never tear one (ADR 0001)."""
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={sqlite.BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        "cache_size=-2000",
        "temp_store=MEMORY",
        "journal_size_limit=16777216",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prepare_sqlite_writer(connection: Any, record: object) -> None:
    """The driver must not begin by itself: `_begin_immediate` does."""
    _prepare_sqlite(connection, record)
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA wal_autocheckpoint=0")  # see `sqlite.Connection.commit`
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")

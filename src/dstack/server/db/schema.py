"""Brings the schema up to date at the start: nothing to do, all at once on an empty database, or by migrations.

Alembic is loaded only when there is something to migrate: importing it would cost each start a tenth of a
second. `HEAD` is the newest migration; tests hold it, the migrations and the tables together.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from dstack.server.db.tables import Row

HEAD = "0015"
MIGRATION_LOCK = 7_243_119_001
"""PostgreSQL advisory lock: of several replicas that start at once, one migrates."""

logger = logging.getLogger(__name__)


async def ensure(connection: AsyncConnection) -> None:
    """Runs in a transaction of its own on `connection`."""
    async with connection.begin():
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        await connection.run_sync(_ensure)


def _ensure(connection: Connection) -> None:
    revision = _revision(connection)
    if revision == HEAD:
        return
    if revision is None and not inspect(connection).get_table_names():
        create(connection)
        return
    from dstack.server.db import migrate  # noqa: PLC0415 - see the module's docstring

    migrate.upgrade(connection, revision)


def create(connection: Connection) -> None:
    """All tables of today, stamped as migrated."""
    Row.metadata.create_all(connection, checkfirst=False)
    connection.execute(
        text(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
            "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:head)"), {"head": HEAD})


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])

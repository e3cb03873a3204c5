"""The tables, the migrations and the stamp say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tests.fixtures.postgres import PostgresServer

from dstack.server.db import migrate, schema
from dstack.server.db.tables import Row


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Two databases without any table."""
    if request.param == "sqlite":
        yield [f"sqlite+aiosqlite:///{tmp_path}/{name}.db" for name in ("one", "two")]
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    names = [postgres.create(), postgres.create()]
    yield [postgres.url(name) for name in names]
    for name in names:
        postgres.drop(name)


def _describe(connection: Connection) -> dict[str, Any]:
    """Everything the engine says about its tables, in an order that does not depend on how they were made."""
    inspector = inspect(connection)
    described: dict[str, Any] = {}
    for table in inspector.get_table_names():
        described[table] = {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"])
                for column in inspector.get_columns(table)
            },
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": sorted(map(str, inspector.get_foreign_keys(table))),
            "unique": sorted(map(str, inspector.get_unique_constraints(table))),
            "indexes": sorted(
                (str(index["name"]), str(index["column_names"]), bool(index["unique"]))
                for index in inspector.get_indexes(table)
            ),
        }
    return described


async def _describe_after(engine: AsyncEngine, prepare: Any) -> dict[str, Any]:
    async with engine.begin() as connection:
        await connection.run_sync(prepare)
        described = await connection.run_sync(_describe)
    return described


async def test_migrating_and_creating_at_once_give_the_same_schema(empty_urls: list[str]) -> None:
    migrated, created = (create_async_engine(url) for url in empty_urls)
    try:
        by_migrations = await _describe_after(migrated, lambda c: migrate.upgrade(c, None))
        at_once = await _describe_after(created, schema.create)
    finally:
        await migrated.dispose()
        await created.dispose()
    assert by_migrations == at_once


async def test_the_migrations_leave_nothing_to_generate(empty_urls: list[str]) -> None:
    engine = create_async_engine(empty_urls[0])

    def differences(connection: Connection) -> list[Any]:
        migrate.upgrade(connection, None)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Row.metadata))

    try:
        async with engine.begin() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


async def test_a_newer_schema_is_used_as_it_is(empty_urls: list[str], caplog: pytest.LogCaptureFixture) -> None:
    engine = create_async_engine(empty_urls[0])
    try:
        async with engine.connect() as connection:
            await schema.ensure(connection)
            await schema.ensure(connection)
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            await connection.commit()
            await schema.ensure(connection)
    finally:
        await engine.dispose()
    assert "migrated by a newer version (9999)" in caplog.text


def test_the_stamp_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(migrate.SCRIPTS)).get_heads() == [schema.HEAD]

"""Alembic's entry: migrates the connection that `dstack.server.db.migrate` passes."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from dstack.server.db.tables import Row


def _run(connection: Connection) -> None:
    """SQLite rebuilds tables to change them (batch mode); the caller owns the transaction."""
    context.configure(
        connection=connection,
        target_metadata=Row.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


_run(context.config.attributes["connection"])

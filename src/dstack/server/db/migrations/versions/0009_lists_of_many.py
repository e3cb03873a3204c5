"""Indexes that keep pages of runs and events as quick with very many rows as with few."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")
    active = sa.text("status NOT IN ('terminated', 'failed', 'done') AND NOT deleted")
    columns = ["project_id", "deleted", "submitted_at", "id"]
    op.create_index("ix_runs_project_active", "runs", columns, sqlite_where=active, postgresql_where=active)
    op.create_index("ix_event_targets_event", "event_targets", ["event_id", "project_id", "entity_type"])
    op.drop_index("ix_event_targets_event_id", table_name="event_targets")

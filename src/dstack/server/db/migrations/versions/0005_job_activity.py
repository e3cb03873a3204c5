"""When somebody was last connected to a job, and how many accelerators it holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")
    op.add_column("jobs", sa.Column("last_active_at", sa.DateTime(), nullable=True))
    op.add_column("jobs", sa.Column("gpus", sa.Integer(), nullable=True))

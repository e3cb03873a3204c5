"""What jobs used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")
    op.create_table(
        "job_metrics_points",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("timestamp_micro", sa.BigInteger(), nullable=False),
        sa.Column("cpu_usage_micro", sa.BigInteger(), nullable=False),
        sa.Column("memory_usage_bytes", sa.BigInteger(), nullable=False),
        sa.Column("memory_working_set_bytes", sa.BigInteger(), nullable=False),
        sa.Column("gpus", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "timestamp_micro", name=op.f("pk_job_metrics_points")),
    )
    op.create_index(
        op.f("ix_job_metrics_points_timestamp_micro"), "job_metrics_points", ["timestamp_micro"], unique=False
    )

"""Probes, rollouts and autoscaling of services."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("replica_targets", sa.Text(), nullable=True))
        runs.add_column(sa.Column("previous_run_spec", sa.Text(), nullable=True))
        runs.add_column(sa.Column("rollout_error", sa.Text(), nullable=True))
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("probe_streaks", sa.Text(), nullable=True))
        jobs.add_column(sa.Column("healthy", sa.Boolean(), server_default=sa.true(), nullable=False))
        jobs.add_column(sa.Column("drain_started_at", sa.DateTime(), nullable=True))
    op.create_table(
        "service_loads",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("server", sa.Uuid(), nullable=False),
        sa.Column("since", sa.DateTime(), nullable=False),
        sa.Column("written_at", sa.DateTime(), nullable=False),
        sa.Column("requests_30", sa.Integer(), nullable=False),
        sa.Column("requests_60", sa.Integer(), nullable=False),
        sa.Column("requests_300", sa.Integer(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=False),
        sa.Column("replicas", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["runs.id"],
            name=op.f("fk_service_loads_run_id_runs"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("run_id", "server", name=op.f("pk_service_loads")),
    )

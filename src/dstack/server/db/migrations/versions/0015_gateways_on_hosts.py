"""Gateways on hosts that are reached over SSH, and the services that they publish."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")
    for name in ("ssh_target", "host_key", "jump_host_key", "installed_version", "failure"):
        op.add_column("gateway_replicas", sa.Column(name, sa.Text(), nullable=True))
    op.add_column(
        "gateway_replicas", sa.Column("is_gone", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("runs", sa.Column("gateway_id", sa.Uuid(), nullable=True))
    op.add_column("runs", sa.Column("gateway_error", sa.Text(), nullable=True))
    op.create_index(op.f("ix_runs_gateway_id"), "runs", ["gateway_id"], unique=False)

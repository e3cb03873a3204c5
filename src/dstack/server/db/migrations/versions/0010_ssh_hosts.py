"""Hosts of SSH fleets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")
    op.add_column("instances", sa.Column("ssh_hostname", sa.String(255), nullable=True))
    op.add_column("instances", sa.Column("ssh_target", sa.Text(), nullable=True))
    op.add_column("instances", sa.Column("ssh_details", sa.Text(), nullable=True))
    op.create_index(op.f("ix_instances_ssh_hostname"), "instances", ["ssh_hostname"], unique=False)

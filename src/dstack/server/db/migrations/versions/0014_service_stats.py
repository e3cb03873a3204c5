"""What the servers tell one another of the requests to services: errors, durations, tokens, requests in flight."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")
    op.add_column("service_loads", sa.Column("windows", sa.Text(), server_default="{}", nullable=False))

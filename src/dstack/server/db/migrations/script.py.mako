"""${message}

Expand now, contract in a later release: replicas of the version before run on this schema during an update.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # Better to fail and be started again than to queue everybody behind a lock that does not come.
        op.execute("SET LOCAL lock_timeout = '10s'")
    ${upgrades if upgrades else "pass"}

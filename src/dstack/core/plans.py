"""What applying a configuration would do."""

from __future__ import annotations

import enum


class ApplyAction(str, enum.Enum):
    """`update` changes what exists in place; `create` makes it anew."""

    CREATE = "create"
    UPDATE = "update"

"""SSH keys of a user that open jobs."""

from __future__ import annotations

from uuid import UUID

from dstack.core.models import CoreModel, Timestamp


class PublicKeyInfo(CoreModel):
    """A registered key; its text is not shown again."""

    id: UUID
    added_at: Timestamp
    name: str
    type: str
    fingerprint: str

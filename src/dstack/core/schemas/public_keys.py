"""`/api/users/public_keys`."""

from __future__ import annotations

from uuid import UUID

from dstack.core.models import CoreModel


class AddPublicKeyRequest(CoreModel):
    """A key in the format of OpenSSH; without a name its comment is used."""

    key: str
    name: str | None = None


class DeletePublicKeysRequest(CoreModel):
    """Keys by id."""

    ids: list[UUID]

"""Secrets of a project."""

from uuid import UUID

from dstack.core.models import CoreModel


class Secret(CoreModel):
    """A secret; its value is only there when it was asked for by name."""

    id: UUID
    name: str
    value: str | None = None

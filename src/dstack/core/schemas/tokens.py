"""`/api/users/tokens`, an addition to the reference."""

from __future__ import annotations

from pydantic import Field

from dstack.core.models import CoreModel, Timestamp


class CreateTokenRequest(CoreModel):
    """A further token of the caller.

    `projects` null: all of the caller; `services_only`: no use of the REST API.
    """

    name: str
    expires_at: Timestamp | None = None
    projects: list[str] | None = Field(default=None, min_length=1)
    services_only: bool = False


class DeleteTokensRequest(CoreModel):
    """Tokens of the caller, by name."""

    names: list[str]

"""`/api/users`."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.models import CoreModel, Timestamp
from dstack.core.users import GlobalRole


class ListUsersRequest(CoreModel):
    """A page of users, oldest first when `ascending`."""

    return_total_count: bool = False
    name_pattern: str | None = None
    prev_created_at: Timestamp | None = None
    prev_id: UUID | None = None
    limit: int = Field(default=2000, ge=0, le=2000)
    ascending: bool = False


class GetUserRequest(CoreModel):
    """A user by name."""

    username: str


class CreateUserRequest(CoreModel):
    """A new user; also all the fields of one that is updated."""

    username: str
    global_role: GlobalRole
    email: str | None = None
    active: bool = True


class RefreshTokenRequest(CoreModel):
    """A user whose token, or SSH key, is made anew."""

    username: str


class DeleteUsersRequest(CoreModel):
    """Users by name."""

    users: list[str]

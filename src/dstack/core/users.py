"""Users of the server, and users inside a job."""

from __future__ import annotations

import enum
from uuid import UUID

from dstack.core.models import CoreModel, Timestamp


class GlobalRole(str, enum.Enum):
    """What a user may do on the whole server."""

    ADMIN = "admin"
    USER = "user"


class UserPermissions(CoreModel):
    """What a user may do outside of projects."""

    can_create_projects: bool


class UserTokenCreds(CoreModel):
    """The user's token."""

    token: str


class User(CoreModel):
    """A user as others see it."""

    id: UUID
    username: str
    created_at: Timestamp | None = None
    global_role: GlobalRole
    email: str | None = None
    active: bool
    permissions: UserPermissions
    ssh_public_key: str | None = None


class UserWithCreds(User):
    """A user as only they and admins see it."""

    creds: UserTokenCreds
    ssh_private_key: str | None = None


class UsersInfoList(CoreModel):
    """A page of users and how many there are."""

    total_count: int | None = None
    users: list[User]


class UnixUser(CoreModel):
    """The user, and group, that a job's processes run as."""

    uid: int | None = None
    gid: int | None = None
    username: str | None = None
    groupname: str | None = None

    @classmethod
    def parse(cls, text: str) -> UnixUser:
        """Raises ValueError unless the text is `user` or `user:group`, each a name or a number."""
        parts = text.split(":")
        if len(parts) > 2 or not all(parts) or any(part.startswith("-") for part in parts):
            raise ValueError(f"{text!r} is not a user: write 'name', 'uid', 'name:group' or 'uid:gid'")
        user, group = parts[0], parts[1] if len(parts) == 2 else None
        return cls(
            uid=int(user) if user.isdecimal() else None,
            gid=int(group) if group and group.isdecimal() else None,
            username=None if user.isdecimal() else user,
            groupname=None if group is None or group.isdecimal() else group,
        )

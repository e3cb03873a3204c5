"""Projects and their members."""

import enum
from uuid import UUID

from dstack.core.backends import BackendInfo
from dstack.core.models import CoreModel, Timestamp
from dstack.core.users import User


class ProjectRole(str, enum.Enum):
    """What a member may do in a project."""

    ADMIN = "admin"
    MANAGER = "manager"
    USER = "user"


class MemberPermissions(CoreModel):
    """What a member may do that depends on the server's settings."""

    can_manage_ssh_fleets: bool
    can_manage_secrets: bool = False


class Member(CoreModel):
    """A user of a project."""

    user: User
    project_role: ProjectRole
    permissions: MemberPermissions


class Project(CoreModel):
    """A project."""

    project_id: UUID
    project_name: str
    owner: User
    created_at: Timestamp | None = None
    backends: list[BackendInfo]
    members: list[Member]
    is_public: bool = False
    templates_repo: str | None = None


class ProjectsInfoList(CoreModel):
    """A page of projects and how many there are."""

    total_count: int | None = None
    projects: list[Project]

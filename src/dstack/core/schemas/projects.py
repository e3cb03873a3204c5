"""`/api/projects`."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.models import CoreModel, Timestamp
from dstack.core.projects import ProjectRole


class ListProjectsRequest(CoreModel):
    """A page of projects."""

    include_not_joined: bool = True
    username: str | None = None
    return_total_count: bool = False
    name_pattern: str | None = None
    prev_created_at: Timestamp | None = None
    prev_id: UUID | None = None
    limit: int = Field(default=2000, ge=0, le=2000)
    ascending: bool = False


class CreateProjectRequest(CoreModel):
    """A new project."""

    project_name: str
    is_public: bool = False
    templates_repo: str | None = None


class UpdateProjectRequest(CoreModel):
    """What changes; null stays as it is."""

    is_public: bool | None = None
    templates_repo: str | None = None
    reset_templates_repo: bool = False


class DeleteProjectsRequest(CoreModel):
    """Projects by name."""

    projects_names: list[str]


class MemberSetting(CoreModel):
    """A user, by name or email, and their role."""

    username: str
    project_role: ProjectRole


class SetProjectMembersRequest(CoreModel):
    """All members."""

    members: list[MemberSetting]


class AddProjectMemberRequest(CoreModel):
    """Further members, or other roles of present ones."""

    members: list[MemberSetting]


class RemoveProjectMemberRequest(CoreModel):
    """Members by name."""

    usernames: list[str]

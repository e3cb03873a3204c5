"""The client's file `~/.dstack/config.yml`: which servers and projects there are, and their tokens."""

from __future__ import annotations

from pydantic import Field

from dstack.core.models import CoreModel
from dstack.core.repos import RepoType


class ProjectConfig(CoreModel):
    """A project of a server."""

    name: str
    url: str
    token: str
    default: bool | None = None


class RepoConfig(CoreModel):
    """A folder that belongs to a repository."""

    path: str
    repo_id: str
    repo_type: RepoType
    ssh_key_path: str | None = None


class ClientConfig(CoreModel):
    """The whole file."""

    projects: list[ProjectConfig] = Field(default_factory=list)
    repos: list[RepoConfig] = Field(default_factory=list)

    def find_project(self, name: str | None = None) -> ProjectConfig | None:
        """The project of that name; without a name the default one."""
        for project in self.projects:
            if project.name == name or (name is None and project.default):
                return project
        return None

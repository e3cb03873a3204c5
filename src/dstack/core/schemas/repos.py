"""`/api/project/{project_name}/repos`."""

from __future__ import annotations

from dstack.core.models import CoreModel
from dstack.core.repos import RemoteRepoCreds, RepoInfo


class GetRepoRequest(CoreModel):
    """A repository by id."""

    repo_id: str
    include_creds: bool


class SaveRepoCredsRequest(CoreModel):
    """A repository and how the caller clones it."""

    repo_id: str
    repo_info: RepoInfo
    repo_creds: RemoteRepoCreds | None = None


class DeleteReposRequest(CoreModel):
    """Repositories by id."""

    repos_ids: list[str]

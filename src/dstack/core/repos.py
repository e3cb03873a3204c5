"""Repositories that runs take their code from."""

import enum
from typing import Annotated, Literal

from pydantic import Field

from dstack.core.models import CoreModel

VIRTUAL_REPO_ID = "none"
"""The id of the repository of runs without one."""


class RepoType(str, enum.Enum):
    """Where a repository's code is."""

    REMOTE = "remote"
    LOCAL = "local"
    VIRTUAL = "virtual"


class RemoteRepoInfo(CoreModel):
    """A Git repository on a server."""

    repo_type: Literal["remote"] = "remote"
    repo_name: str


class LocalRepoInfo(CoreModel):
    """A local folder."""

    repo_type: Literal["local"] = "local"
    repo_dir: str


class VirtualRepoInfo(CoreModel):
    """No repository."""

    repo_type: Literal["virtual"] = "virtual"


class RemoteRunRepoData(CoreModel):
    """The state of a Git repository that a run starts from. The diff is sent, never shown."""

    repo_type: Literal["remote"] = "remote"
    repo_name: str
    repo_branch: str | None = None
    repo_hash: str | None = None
    repo_diff: str | None = Field(default=None, exclude=True)
    repo_config_name: str | None = None
    repo_config_email: str | None = None


class LocalRunRepoData(CoreModel):
    """A local folder that a run starts from."""

    repo_type: Literal["local"] = "local"
    repo_dir: str


class VirtualRunRepoData(CoreModel):
    """A run without a repository."""

    repo_type: Literal["virtual"] = "virtual"


RepoInfo = Annotated[RemoteRepoInfo | LocalRepoInfo | VirtualRepoInfo, Field(discriminator="repo_type")]
RunRepoData = Annotated[
    RemoteRunRepoData | LocalRunRepoData | VirtualRunRepoData, Field(discriminator="repo_type")
]


class RemoteRepoCreds(CoreModel):
    """How to clone a repository."""

    clone_url: str
    private_key: str | None = None
    oauth_token: str | None = None


class RepoHead(CoreModel):
    """A repository known to a project."""

    repo_id: str
    repo_info: RepoInfo


class RepoHeadWithCreds(RepoHead):
    """A repository and the caller's credentials for it."""

    repo_creds: RemoteRepoCreds | None = None

"""The fields that tasks, services and dev environments share."""

import enum
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from dstack.core.configurations.environment import Env
from dstack.core.configurations.mounts import FilePathMapping, MountPoint, RepoSpec
from dstack.core.models import CoreModel
from dstack.core.names import GROUP_NAME
from dstack.core.resources import ResourcesSpec
from dstack.core.users import UnixUser

DEFAULT_HOME_DIR = "/root"
DEFAULT_REPO_DIR = "/workflow"
DEFAULT_PRIORITY = 0


class PythonVersion(str, enum.Enum):
    """The Python versions that the default image has."""

    PY39 = "3.9"
    PY310 = "3.10"
    PY311 = "3.11"
    PY312 = "3.12"
    PY313 = "3.13"
    PY314 = "3.14"
    PY315 = "3.15"


def _parse_python(value: Any) -> Any:
    """YAML reads 3.10 as the number 3.1; nobody means 3.1."""
    if isinstance(value, float):
        value = "3.10" if value == 3.1 else str(value)
    if isinstance(value, str) and re.fullmatch(r"3\.\d+", value) and value not in set(PythonVersion):
        versions = ", ".join(version.value for version in PythonVersion)
        raise ValueError(f"Python {value} is not available: choose one of {versions}, or give an 'image'")
    return value


Python = Annotated[PythonVersion, BeforeValidator(_parse_python)]


class RegistryAuth(CoreModel):
    """Credentials of a private image registry."""

    username: str
    """`${{ env.X }}` and `${{ secrets.x }}` are filled in."""
    password: str
    """Likewise; keep it in a secret."""


def _check_user(user: str) -> str:
    UnixUser.parse(user)
    return user


def _check_shell(shell: str) -> str:
    if shell not in ("sh", "bash") and not shell.startswith("/"):
        raise ValueError(f"'shell' must be sh, bash or an absolute path, not {shell!r}")
    return shell


def _check_repos(repos: list[RepoSpec]) -> list[RepoSpec]:
    if len(repos) > 1:
        raise ValueError("only one repo can be used")
    return repos


def check_group_name(name: str) -> str:
    """Raises ValueError unless a node or replica group may have this name."""
    if GROUP_NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is not a group name: up to 40 lower-case letters, digits and inner dashes are allowed"
        )
    return name


GroupName = Annotated[str, AfterValidator(check_group_name)]


def number_groups(groups: Any) -> Any:
    """Gives the groups without a name their position as a name."""
    if not isinstance(groups, list):
        return groups
    return [
        {**group, "name": str(index)} if isinstance(group, dict) and group.get("name") is None else group
        for index, group in enumerate(groups)
    ]


def check_group_names(names: list[str | None]) -> None:
    """Raises ValueError when there is no group, or two of one name."""
    if not names:
        raise ValueError("'groups' is empty: leave it out or name at least one group")
    if len(set(names)) != len(names):
        raise ValueError("two groups have the same name")


class RunConfiguration(CoreModel):
    """What every run configuration has besides the fields of a profile."""

    type: str
    """Which kind of configuration this is."""
    name: str | None = None
    """Name of the run; one is made up where it is left out."""
    image: str | None = None
    """Docker image; the job is a container of it. Without one, a job on the server's own machine is a process."""
    user: Annotated[str, AfterValidator(_check_user)] | None = None
    """As whom the job runs: `name`, `uid`, `name:group` or `uid:gid`."""
    privileged: bool = False
    """Gives the container all rights on its host."""
    entrypoint: str | None = None
    """Takes the place of the image's entrypoint; the commands become its arguments."""
    working_dir: str | None = None
    """Where the commands run: absolute, `~/…`, or relative to `/workflow`, which for a process on the server's own
    machine is a fresh folder."""
    home_dir: str = DEFAULT_HOME_DIR
    """What `~` in paths stands for in a container."""
    registry_auth: RegistryAuth | None = None
    """Credentials for pulling the image."""
    python: Python | None = None
    """Version of Python. A process gets a virtual environment of it (`$DSTACK_VENV_DIR`); not with `image`."""
    nvcc: bool | None = None
    """The default image comes with the CUDA compiler; a process needs it on its machine."""
    single_branch: bool | None = None
    """Clone only the branch in use; by default true, for dev environments false."""
    env: Env = Field(default_factory=dict)
    """Variables: a map, or a list of `NAME=value` and `NAME` (taken from where `dstack apply` runs). `${{
    secrets.x }}` is filled in."""
    shell: Annotated[str, AfterValidator(_check_shell)] | None = None
    """`sh`, `bash` or an absolute path; by default `/bin/bash`, with an image `/bin/sh`."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    """What the job needs; a part of a machine will do."""
    priority: Annotated[int, Field(ge=0, le=100)] | None = None
    """0 to 100; higher ones come first in the queue."""
    volumes: list[MountPoint] = Field(default_factory=list)
    """Network volumes and folders of the host that appear in the job; for a process on the server's own machine as
    links."""
    docker: bool | None = None
    """The job has a Docker of its own. Not with `image`, `python` or `nvcc`."""
    repos: Annotated[list[RepoSpec], AfterValidator(_check_repos)] = Field(default_factory=list)
    """A Git repository that is cloned into the job; at most one."""
    files: list[FilePathMapping] = Field(default_factory=list)
    """Local files and folders that are copied into the job."""
    dstack: bool = False
    """Access to the server from within the job; this server refuses it."""
    setup: list[str] = Field(default_factory=list)
    """Commands that run before all others."""

    @field_validator("python")
    @classmethod
    def _check_python(cls, python: PythonVersion | None, info: ValidationInfo) -> PythonVersion | None:
        if python is not None and info.data.get("image") is not None:
            raise ValueError("'python' cannot be used together with 'image': the image brings its own")
        return python

    @field_validator("docker")
    @classmethod
    def _check_docker(cls, docker: bool | None, info: ValidationInfo) -> bool | None:
        for other in ("image", "python", "nvcc"):
            if docker and info.data.get(other):
                raise ValueError(f"'docker' cannot be used together with '{other}'")
        return docker

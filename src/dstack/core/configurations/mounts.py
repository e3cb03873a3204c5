"""Volumes and host folders mounted into a job; files and repositories copied into it."""

import enum
import posixpath
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag, model_validator
from typing_extensions import Self

from dstack.core.models import CoreModel

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SCP_HOST = re.compile(r"[^/:\s]+@[^/:\s]+:")
_PORT_AND_PATH = re.compile(r"\d+(/.*)?")


def _check_absolute(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} is not an absolute path without '..'")
    return posixpath.normpath(path)


AbsolutePath = Annotated[str, AfterValidator(_check_absolute)]


class VolumeMountPoint(CoreModel):
    """A network volume, or the first available of several, and where it appears. Short form: `name:/path`."""

    name: str | list[str]
    """Name of the volume, or names to choose from; `${{ dstack.node_rank }}` gives each node its own."""
    path: AbsolutePath
    """Where it appears in the job."""


class InstanceMountPoint(CoreModel):
    """A folder of the host and where it appears. Short form: `/host/path:/path`."""

    instance_path: AbsolutePath
    """On the host; made where it is missing."""
    path: AbsolutePath
    """Where it appears in the job."""
    optional: bool = False
    """Do without where the host cannot provide it."""


def _expand_mount(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    source, *paths = value.split(":")
    if len(paths) != 1:
        raise ValueError(f"{value!r} is not a mount: write 'volume-name:/path' or '/host/path:/path'")
    key = "instance_path" if "/" in source else "name"
    return {key: source, "path": paths[0]}


def _mount_kind(value: Any) -> str:
    on_instance = "instance_path" in value if isinstance(value, dict) else isinstance(value, InstanceMountPoint)
    return "InstanceMountPoint" if on_instance else "VolumeMountPoint"


MountPoint = Annotated[
    Annotated[VolumeMountPoint, Tag("VolumeMountPoint")]
    | Annotated[InstanceMountPoint, Tag("InstanceMountPoint")],
    Discriminator(_mount_kind),
    BeforeValidator(_expand_mount),
]


def _split_paths(text: str, what: str) -> list[str]:
    """`local:inside` as a list of one or two; the colon of a Windows drive does not split."""
    drive = text[:2] if _DRIVE.match(text) else ""
    parts = text[len(drive) :].split(":")
    if len(parts) > 2:
        raise ValueError(f"{text!r} is not {what}: it has too many colons")
    return [drive + parts[0], *parts[1:]]


def _check_file_path(path: str) -> str:
    if _DRIVE.match(path):
        raise ValueError(f"{path!r} is a Windows path; say where the file goes in the job, as in '{path}:/path'")
    return path


class FilePathMapping(CoreModel):
    """A local file or folder and where it is copied to. Short forms: `path`, `local:inside`."""

    local_path: str
    """Relative to the configuration file, or absolute, or `~/…`."""
    path: Annotated[str, AfterValidator(_check_file_path)]
    """In the job: relative to the working directory, absolute, or `~/…`."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        paths = _split_paths(value, "a file mapping")
        return {"local_path": paths[0], "path": paths[-1]}


class RepoExistsAction(str, enum.Enum):
    """What to do when the folder that a repository goes to is not empty."""

    ERROR = "error"
    SKIP = "skip"


def _check_repo_path(path: str) -> str:
    if path.startswith("~") and path != "~" and not path.startswith("~/"):
        raise ValueError(f"{path!r}: the home folder of another user cannot be used; write '~/...'")
    return path


class RepoSpec(CoreModel):
    """A Git repository that is cloned into the job. Short forms: `..`, `.:/repo`, `https://host/repo.git:/repo`."""

    local_path: str | None = None
    """A folder of a local clone; changes that are not pushed go along."""
    url: str | None = None
    """Or where to clone from."""
    branch: str | None = None
    """By default the current or default one."""
    hash: str | None = None
    """A commit."""
    path: Annotated[str, AfterValidator(_check_repo_path)] = "."
    """Where it goes in the job."""
    if_exists: RepoExistsAction = RepoExistsAction.ERROR
    """What to do when the folder is not empty."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return _parse_repo(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.local_path is None) == (self.url is None):
            raise ValueError("a repo needs exactly one of 'local_path' and 'url'")
        return self


def _parse_repo(text: str) -> dict[str, str]:
    if not text:
        raise ValueError("a repo is given as a local path or a URL")
    prefix = _URL.match(text) or _SCP_HOST.match(text)
    if prefix is None:
        source, *path = _split_paths(text, "a repo")
        key = "local_path"
    else:
        source, *path = text[prefix.end() :].split(":")
        key = "url"
        if len(path) == 1 and _PORT_AND_PATH.fullmatch(path[0]):
            source, path = f"{source}:{path[0]}", []
        source = prefix.group() + source
    if len(path) > 1:
        raise ValueError(f"{text!r} is not a repo: it has too many colons; use 'url' and 'path' instead")
    return {key: source, **({"path": path[0]} if path else {})}

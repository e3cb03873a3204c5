"""`~/.dstack/config.yml`: which projects there are, on which servers, with which tokens.

The file is checked by hand, as `dstack.core.client_config` has it: a model would cost more than the rest of
`dstack ps` together.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dstack.api.errors import ConfigError

PROJECT_VARIABLE = "DSTACK_PROJECT"
SERVER_URL_VARIABLE = "DSTACK_SERVER_URL"
TOKEN_VARIABLE = "DSTACK_TOKEN"

_KEYS = {"name": str, "url": str, "token": str}


@dataclass
class Project:
    """A project of a server and the token of the user who works in it."""

    name: str
    url: str
    token: str = field(repr=False)
    default: bool = False


def default_path() -> Path:
    """Where the file of the current user is."""
    return Path.home() / ".dstack" / "config.yml"


class ConfigFile:
    """The projects on file. Changes are kept in memory until `save`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self.projects = _read(self.path)

    def find(self, name: str) -> Project | None:
        """The project of that name."""
        return next((project for project in self.projects if project.name == name), None)

    def find_default(self) -> Project | None:
        """The default project."""
        return next((project for project in self.projects if project.default), None)

    def put(self, project: Project) -> None:
        """Adds the project, or replaces the one of its name."""
        self.projects = [other for other in self.projects if other.name != project.name] + [project]
        if project.default:
            self.set_default(project.name)

    def set_default(self, name: str) -> None:
        """Makes the project the only default one."""
        for project in self.projects:
            project.default = project.name == name

    def remove(self, name: str) -> None:
        """Forgets the project; if it was the default, the first of the others becomes it."""
        removed = self.find(name)
        self.projects = [project for project in self.projects if project.name != name]
        if removed is not None and removed.default and self.projects:
            self.projects[0].default = True

    def save(self) -> None:
        """Writes the file at once as a whole, readable by its owner only."""
        document = {"projects": [vars(project) for project in self.projects]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".config-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                yaml.safe_dump(document, file, sort_keys=True)
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def resolve_project(
    name: str | None = None, *, environ: Mapping[str, str] = os.environ, path: Path | None = None
) -> Project:
    """The project to work in: the one named, else of `DSTACK_PROJECT`, else the default one on file.

    `DSTACK_SERVER_URL` and `DSTACK_TOKEN` together with a project replace the file; `DSTACK_TOKEN` alone replaces
    the token on file. Raises ConfigError when there is no such project.
    """
    name = name or environ.get(PROJECT_VARIABLE) or None
    url, token = environ.get(SERVER_URL_VARIABLE), environ.get(TOKEN_VARIABLE)
    if name and url and token:
        return Project(name, url, token)
    file = ConfigFile(path)
    project = file.find(name) if name else file.find_default()
    if project is None:
        raise ConfigError(_explain_absence(name))
    return Project(project.name, project.url, token or project.token, project.default)


def _explain_absence(name: str | None) -> str:
    if name is None:
        return (
            "There is no default project: add one with `dstack project add`,"
            " or choose one with --project or `dstack project set-default`"
        )
    return f"There is no project {name!r} on file: add it with `dstack project add`, or see `dstack project list`"


def _read(path: Path) -> list[Project]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        data = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return _parse(path, data if data is not None else {})


def _parse(path: Path, data: Any) -> list[Project]:
    if not isinstance(data, dict) or not isinstance(data.get("projects") or [], list):
        raise ConfigError(f"{path} is broken: a map with a list 'projects' is expected")
    unknown = sorted(str(key) for key in data.keys() - {"projects", "repos"})
    if unknown:
        raise ConfigError(f"{path} is broken: unknown field {unknown[0]!r}; 'projects' is the only one")
    return [_parse_project(path, number, entry) for number, entry in enumerate(data.get("projects") or [])]


def _parse_project(path: Path, number: int, entry: Any) -> Project:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path} is broken: projects[{number}] must be a map with name, url and token")
    for key, kind in _KEYS.items():
        if not isinstance(entry.get(key), kind):
            raise ConfigError(f"{path} is broken: projects[{number}] needs a text {key!r}")
    unknown = sorted(str(key) for key in entry.keys() - {*_KEYS, "default"})
    if unknown:
        raise ConfigError(f"{path} is broken: projects[{number}] has the unknown field {unknown[0]!r}")
    return Project(entry["name"], entry["url"], entry["token"], bool(entry.get("default")))


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

"""Archives of the files that a run takes along: tar, the same bytes for the same content."""

from __future__ import annotations

import fnmatch
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from dstack.api.errors import ConfigError
from dstack.api.rest.client import RestClient
from dstack.core.configurations.mounts import FilePathMapping
from dstack.core.files import FileArchiveMapping

IGNORE_FILES = (".gitignore", ".dstackignore")


def upload_files(rest: RestClient, mappings: Sequence[FilePathMapping], folder: Path) -> list[FileArchiveMapping]:
    """Uploads what the mappings name, relative to the folder; what the run spec says about it."""
    uploaded = []
    for mapping in mappings:
        path = folder / Path(mapping.local_path).expanduser()
        if not path.exists():
            raise ConfigError(f"'files' names {mapping.local_path}, but there is no {path}")
        archive_id = rest.files.upload_archive(build_archive(path))
        uploaded.append(FileArchiveMapping.model_validate({"id": archive_id, "path": mapping.path}))
    return uploaded


def build_archive(path: Path) -> bytes:
    """A PAX tar of the file or folder under its own name, sorted, without what ignore files exclude."""
    path = Path(path).resolve() if path.is_symlink() else Path(os.path.abspath(path))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item in sorted(_iter_included(path)):
            _add(tar, item, path)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, item: Path, root: Path) -> None:
    leads_outside = item.is_symlink() and not item.resolve().is_relative_to(root.resolve())
    source = item.resolve() if leads_outside else item
    if not source.is_symlink() and not source.exists():
        raise ConfigError(f"{item} is a link to nothing")
    info = tar.gettarinfo(str(source), arcname=str(item.relative_to(root.parent)))
    if info is None:
        return
    if info.issym() and Path(info.linkname).is_absolute():
        info.linkname = _relative_link(item)
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = int(info.mtime)
    if info.isreg() or info.islnk():
        info.type = tarfile.REGTYPE
        info.size = source.stat().st_size
        with source.open("rb") as file:
            tar.addfile(info, file)
    else:
        tar.addfile(info)


def _relative_link(item: Path) -> str:
    target, start = item.resolve(), item.parent.resolve()
    up = 0
    while not target.is_relative_to(start):
        start, up = start.parent, up + 1
    return str(Path(*[".."] * up, target.relative_to(start)))


def _iter_included(path: Path, rules: Sequence[_Rule] = ()) -> Iterator[Path]:
    yield path
    if not path.is_dir() or path.is_symlink():
        return
    rules = [*rules, *_load_rules(path)]
    for child in path.iterdir():
        if child.name != ".git" and not _is_ignored(child, rules):
            yield from _iter_included(child, rules)


class _Rule:
    """One line of an ignore file, in the folder it stands in."""

    def __init__(self, folder: Path, line: str) -> None:
        self.folder = folder
        self.is_exception = line.startswith("!")
        pattern = line.removeprefix("!")
        self.only_folders = pattern.endswith("/")
        pattern = pattern.rstrip("/")
        self.is_anchored = "/" in pattern
        self.pattern = pattern.lstrip("/")

    def matches(self, path: Path) -> bool:
        if self.only_folders and not path.is_dir():
            return False
        if not self.is_anchored:
            return fnmatch.fnmatchcase(path.name, self.pattern)
        return _match_parts(path.relative_to(self.folder).parts, self.pattern.split("/"))


def _match_parts(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match_parts(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatchcase(parts[0], patterns[0]):
        return False
    return _match_parts(parts[1:], patterns[1:])


def _load_rules(folder: Path) -> list[_Rule]:
    rules = []
    for name in IGNORE_FILES:
        file = folder / name
        if file.is_file():
            lines = (line.rstrip() for line in file.read_text(encoding="utf-8").splitlines())
            rules += [_Rule(folder, line) for line in lines if line and not line.startswith("#")]
    return rules


def _is_ignored(path: Path, rules: Sequence[_Rule]) -> bool:
    """The last rule that matches decides."""
    for rule in reversed(rules):
        if rule.matches(path):
            return not rule.is_exception
    return False

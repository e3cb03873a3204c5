"""Uploaded archives and where their content goes. The one entry at an archive's root becomes the target itself."""

from __future__ import annotations

import copy
import os
import tarfile
from typing import Iterator, List, Tuple


class ArchiveError(Exception):
    """The archive cannot be used; the message is for the user."""


def placed_members(archive: tarfile.TarFile, target: str) -> Iterator[Tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    """Each entry, and a copy of it named as it is to be at `target`. Raises ArchiveError.

    A target that ends in `/` is the folder that the root entry is put into.
    """
    root = ""
    for member in archive:
        parts = _parts(member.name)
        if root and parts[0] != root:
            raise ArchiveError(f"it has more than one entry at its root: {root}, {parts[0]}")
        root = parts[0]
        place = os.path.join(target, root) if target.endswith("/") else target
        yield member, _placed(member, place, parts[1:])


def _parts(name: str) -> List[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or not parts or ".." in parts[1:]:
        raise ArchiveError(f"it has an entry outside of its folder: {name}")
    return parts


def _placed(member: tarfile.TarInfo, place: str, inside: List[str]) -> tarfile.TarInfo:
    found = copy.copy(member)
    found.name = os.path.normpath(os.path.join(place, *inside))
    found.pax_headers = {}
    if member.issym():
        pointed = os.path.normpath(os.path.join(*inside[:-1], member.linkname))
        if member.linkname.startswith("/") or pointed.split("/")[0] == "..":
            raise ArchiveError(f"its link {member.name} leads outside of its folder: {member.linkname}")
    elif member.islnk():
        found.linkname = os.path.normpath(os.path.join(place, *_parts(member.linkname)[1:]))
    elif not member.isreg() and not member.isdir():
        raise ArchiveError(f"its entry {member.name} is neither a file, a folder nor a link")
    return found


def unpack(archive: tarfile.TarFile, target: str) -> None:
    """Unpacks it to the absolute path `target`, as this process's user. Raises ArchiveError, OSError."""
    top = os.path.dirname(os.path.normpath(target)) if not target.endswith("/") else os.path.normpath(target)
    os.makedirs(top, exist_ok=True)
    bound = os.path.realpath(top)
    if hasattr(tarfile, "tar_filter"):
        archive.extraction_filter = staticmethod(tarfile.fully_trusted_filter)  # every entry is checked here
    for _, member in placed_members(archive, target):
        parent = os.path.realpath(os.path.dirname(member.name))
        if os.path.commonpath([parent, bound]) != bound:
            raise ArchiveError(f"its entry {member.name} leads outside of its folder")
        member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
        archive.extract(member, "/", numeric_owner=True)


def add_placed(archive: tarfile.TarFile, target: str, into: tarfile.TarFile, owner: Tuple[int, int]) -> None:
    """Adds the content to another archive, which is unpacked at `/`. Raises ArchiveError."""
    for member, placed in placed_members(archive, target):
        if placed.islnk():
            placed.linkname = placed.linkname.lstrip("/")
        add_entry(into, placed, owner, archive.extractfile(member) if member.isreg() else None)


def add_folder(folder: str, target: str, into: tarfile.TarFile, owner: Tuple[int, int]) -> None:
    """Adds a folder of this host as `target` to an archive that is unpacked at `/`. Raises OSError."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        inside = os.path.normpath(os.path.join(target, os.path.relpath(path, folder)))
        links = [name for name in folders if os.path.islink(os.path.join(path, name))]
        add_entry(into, into.gettarinfo(path, arcname=inside), owner)
        for name in sorted(files + links):
            info = into.gettarinfo(os.path.join(path, name), arcname=os.path.join(inside, name))
            if info.isreg():
                with open(os.path.join(path, name), "rb") as file:
                    add_entry(into, info, owner, file)
            elif info.issym():
                add_entry(into, info, owner)


def add_entry(into: tarfile.TarFile, info: tarfile.TarInfo, owner: Tuple[int, int], file: object = None) -> None:
    """Adds one entry by its absolute name; `/` itself is there already."""
    info.name = info.name.lstrip("/")
    info.uid, info.gid, info.uname, info.gname = owner[0], owner[1], "", ""
    if info.name:
        into.addfile(info, file)  # type: ignore[arg-type]

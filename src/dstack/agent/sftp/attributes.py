"""How files are described: the fields of the protocol, and a line as `ls -l` prints it."""

from __future__ import annotations

import os
import stat
import time
from typing import Dict, NamedTuple, Optional, Tuple

from dstack.agent.sftp import wire

SIZE, OWNERS, PERMISSIONS, TIMES, EXTENDED = 1, 2, 4, 8, 0x80000000
_HALF_YEAR_SECONDS = 182 * 24 * 3600


class Attributes(NamedTuple):
    """What a client wants to be set; None: left as it is. Times are whole seconds."""

    size: Optional[int] = None
    owners: Optional[Tuple[int, int]] = None
    permissions: Optional[int] = None
    times: Optional[Tuple[int, int]] = None


def read(message: wire.Reader) -> Attributes:
    """Raises `wire.Malformed`."""
    flags = message.uint32()
    size = message.uint64() if flags & SIZE else None
    owners = (message.uint32(), message.uint32()) if flags & OWNERS else None
    permissions = message.uint32() & 0o7777 if flags & PERMISSIONS else None
    times = (message.uint32(), message.uint32()) if flags & TIMES else None
    if flags & EXTENDED:
        for _ in range(message.uint32()):
            message.text()
            message.text()
    return Attributes(size, owners, permissions, times)


def pack(found: os.stat_result) -> bytes:
    """The fields of a file."""
    numbers = (found.st_uid, found.st_gid, found.st_mode, int(found.st_atime), int(found.st_mtime))
    flags = SIZE | OWNERS | PERMISSIONS | TIMES
    return wire.uint32(flags) + wire.uint64(found.st_size) + b"".join(wire.uint32(number) for number in numbers)


def long_name(name: bytes, found: os.stat_result, users: Dict[int, str], groups: Dict[int, str]) -> bytes:
    """The line of `ls -l`."""
    is_old = not -3600 < time.time() - found.st_mtime < _HALF_YEAR_SECONDS
    when = time.strftime("%b %e  %Y" if is_old else "%b %e %H:%M", time.localtime(found.st_mtime))
    owner = users.get(found.st_uid, str(found.st_uid))
    group = groups.get(found.st_gid, str(found.st_gid))
    line = f"{stat.filemode(found.st_mode)} {found.st_nlink:3} {owner:8} {group:8} {found.st_size:8} {when} "
    return line.encode() + name


def apply(path: bytes, wanted: Attributes, follow: bool = True) -> None:
    """Sets them on a file by its name. Raises OSError."""
    if wanted.size is not None:
        os.truncate(path, wanted.size)
    if wanted.permissions is not None:
        if not follow and stat.S_ISLNK(os.lstat(path).st_mode):
            raise NotImplementedError("a link has no permissions")
        os.chmod(path, wanted.permissions)
    if wanted.times is not None:
        os.utime(path, wanted.times, follow_symlinks=follow)
    if wanted.owners is not None:
        os.chown(path, *wanted.owners, follow_symlinks=follow)


def apply_to_open(descriptor: int, wanted: Attributes) -> None:
    """The same on an open file."""
    if wanted.size is not None:
        os.ftruncate(descriptor, wanted.size)
    if wanted.permissions is not None:
        os.fchmod(descriptor, wanted.permissions)
    if wanted.times is not None:
        os.utime(descriptor, wanted.times)
    if wanted.owners is not None:
        os.fchown(descriptor, *wanted.owners)

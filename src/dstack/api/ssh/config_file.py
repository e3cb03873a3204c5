"""`~/.dstack/ssh/config`: the `Host` entries of attached runs, and the line of `~/.ssh/config` that includes it.

Several attached commands write the file at once: each change reads and writes it under a lock. An entry names the
processes that use it in comments and goes when the last of them is done, or found dead, and with it the files
that it names. Entries without such comments belong to other programs and stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dstack.api.ssh.hosts import HostEntry
from dstack.api.ssh.keys import write_private

ACCESS_SUFFIX, KNOWN_HOSTS_SUFFIX = ".access.json", ".known_hosts"
FILE_SUFFIXES = (ACCESS_SUFFIX, KNOWN_HOSTS_SUFFIX)
"""Of the files that belong to an entry, beside the configuration."""
OWNER = re.compile(r"^\s*# attached by (process \d+ on \S+)$")


def this_process() -> str:
    """How entries name this process. Homes may be shared by several machines."""
    return f"process {os.getpid()} on {socket.gethostname() or 'localhost'}"


@dataclass
class _Block:
    """What stands from one `Host` line to the next; what stands before the first has no name."""

    name: str | None
    lines: list[str] = field(default_factory=list)

    @property
    def owners(self) -> list[str]:
        return [match.group(1) for line in self.lines if (match := OWNER.match(line))]


class EntriesFile:
    """The file of entries."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file_of(self, name: str, suffix: str) -> Path:
        """A file that belongs to an entry; `suffix` is one of `FILE_SUFFIXES`."""
        return self.path.with_name(f"{name}{suffix}")

    def put(self, entries: Sequence[HostEntry], files: Mapping[Path, str], owner: str) -> None:
        """Writes the entries, as used by the process too, and their files; what only dead processes used goes."""
        names = {entry.name for entry in entries}
        with self._changed() as blocks:
            owners = {block.name: block.owners for block in blocks if block.name in names}
            for block in [block for block in blocks if block.owners and not _is_used(block)]:
                self._drop(blocks, block)
            blocks[:] = [block for block in blocks if block.name not in names]
            for path, text in files.items():
                write_private(path, text)
            for entry in entries:
                users = [*filter(_is_alive, owners.get(entry.name, ())), owner]
                comments = [f"    # attached by {user}" for user in users]
                blocks.append(_Block(entry.name, [*entry.render().splitlines(), *comments]))

    def remove(self, names: Sequence[str], owner: str) -> None:
        """The process is done with the entries."""
        with self._changed() as blocks:
            for block in [block for block in blocks if block.name in names]:
                comment = f"    # attached by {owner}"
                if comment in block.lines:
                    block.lines.remove(comment)
                if not _is_used(block):
                    self._drop(blocks, block)

    def _drop(self, blocks: list[_Block], block: _Block) -> None:
        blocks.remove(block)
        for suffix in FILE_SUFFIXES:
            self.file_of(str(block.name), suffix).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _changed(self) -> Iterator[list[_Block]]:
        with (self.path.parent / ".config.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            blocks = _parse(self.path.read_text(encoding="utf-8") if self.path.exists() else "")
            yield blocks
            write_private(self.path, "".join(f"{line}\n" for block in blocks for line in block.lines))


def include_entries(path: Path, user_config: Path) -> None:
    """Puts the line that includes the entries first in the user's own configuration, unless it is there."""
    line = f'Include "{path}"' if " " in str(path) else f"Include {path}"
    user_config.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = user_config.resolve()
    with (path.parent / ".config.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = target.read_text(encoding="utf-8") if target.exists() else ""
        if line in (present.strip() for present in text.splitlines()):
            return
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        write_private(target, f"{line}\n\n{text}" if text else f"{line}\n")
        target.chmod(mode)


def _parse(text: str) -> list[_Block]:
    blocks = [_Block(None)]
    for line in text.splitlines():
        words = line.split(maxsplit=1)
        if len(words) == 2 and words[0].lower() in ("host", "match"):
            blocks.append(_Block(words[1].strip()))
        blocks[-1].lines.append(line)
    return blocks


def _is_used(block: _Block) -> bool:
    return any(map(_is_alive, block.owners))


def _is_alive(owner: str) -> bool:
    """Processes of other machines are taken to be alive."""
    _, process_id, _, machine = owner.split(" ", 3)
    if machine != this_process().split(" ", 3)[3]:
        return True
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

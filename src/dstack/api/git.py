"""Git repositories on this machine: what they are clones of, where they stand, and what is not pushed."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dstack.api.errors import ConfigError

_SCP = re.compile(r"(?:(?P<user>[^@/]+)@)?(?P<host>[^:/]+):(?P<path>.+)")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class GitRepo:
    """A repository as a run needs it. `diff` takes the remote commit to the working tree."""

    url: str
    branch: str | None = None
    commit: str | None = None
    diff: bytes = b""
    user_name: str | None = None
    user_email: str | None = None

    @property
    def name(self) -> str:
        """The last part of the URL, without `.git`."""
        return split_url(self.url)[1].rpartition("/")[2]

    @property
    def id(self) -> str:
        """The same for everybody who clones the same repository, however they reach it."""
        host, path = split_url(self.url)
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{slug}-{_base36(hashlib.sha256(f'{host}/{path}'.encode()).digest())[:8]}"


def split_url(url: str) -> tuple[str, str]:
    """Host and path of `https://host/path.git`, `ssh://…` or `git@host:path.git`. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "ssh", "git", "file"):
        host, path = parts.hostname or "", parts.path
    else:
        match = _SCP.fullmatch(url)
        if match is None:
            raise ConfigError(f"{url!r} is not the URL of a Git repository")
        host, path = match["host"], match["path"]
    return host, path.strip("/").removesuffix(".git")


def is_url(text: str) -> bool:
    """Whether the text is a URL rather than a path on this machine."""
    return "://" in text or (_SCP.fullmatch(text) is not None and not Path(text).exists())


def read_repo(folder: Path) -> GitRepo:
    """The repository that the folder belongs to. Raises ConfigError when there is none, or it has no remote."""
    root = _git(folder, "rev-parse", "--show-toplevel", problem=f"{folder} is not in a Git repository").strip()
    remote = _find_remote(Path(root))
    url = _git(Path(root), "remote", "get-url", remote).strip()
    branch = _find(Path(root), "symbolic-ref", "--short", "-q", "HEAD")
    commit = _remote_commit(Path(root), remote)
    return GitRepo(
        url=url,
        branch=branch,
        commit=commit,
        diff=_diff(Path(root), commit),
        user_name=_find(Path(root), "config", "user.name"),
        user_email=_find(Path(root), "config", "user.email"),
    )


def _find_remote(root: Path) -> str:
    remotes = _git(root, "remote").split()
    if not remotes:
        raise ConfigError(
            f"The Git repository {root} has no remote to clone it from: add one with `git remote add`"
        )
    return "origin" if "origin" in remotes else remotes[0]


def _remote_commit(root: Path, remote: str) -> str:
    """The newest commit of ours that the remote has."""
    ours = _git(
        root, "rev-list", "HEAD", "--not", f"--remotes={remote}", "--boundary", problem="There is no commit"
    )
    boundary = [line[1:] for line in ours.splitlines() if line.startswith("-")]
    if boundary:
        return boundary[0]
    if ours.strip():
        raise ConfigError(f"Nothing of {root} is on its remote yet: push it with `git push`")
    return _git(root, "rev-parse", "HEAD").strip()


def _diff(root: Path, commit: str) -> bytes:
    tracked = _run(root, "diff", "--binary", "--no-color", "--no-ext-diff", commit).stdout
    untracked = _run(root, "ls-files", "--others", "--exclude-standard", "-z").stdout.split(b"\0")
    new_files = [
        _run(
            root,
            "diff",
            "--binary",
            "--no-color",
            "--no-ext-diff",
            "--no-index",
            "--",
            os.devnull,
            os.fsdecode(name),
        ).stdout
        for name in untracked
        if name
    ]
    return tracked + b"".join(new_files)


def _find(root: Path, *args: str) -> str | None:
    return _run(root, *args).stdout.decode().strip() or None


def _git(root: Path, *args: str, problem: str | None = None) -> str:
    done = _run(root, *args)
    if done.returncode != 0:
        raise ConfigError(
            problem or f"git {args[0]} failed in {root}: {done.stderr.decode(errors='replace').strip()}"
        )
    return done.stdout.decode()


def _run(root: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError("There is no git on this machine, and a repository needs it: install Git") from error


def _base36(digest: bytes) -> str:
    number, text = int.from_bytes(digest, "big"), ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text

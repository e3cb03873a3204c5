"""Clones a Git repository on the host, with the host's own `git`, and applies uploaded changes to it.

Credentials are given to `git` in ways that leave nothing on the disk: a token through the environment of a
credential helper, a key through a file in memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import urllib.parse
from typing import Dict, Iterator, List, Optional

from dstack.agent.protocol import RepoCredentials, RepoSpec

TOKEN_USER = "oauth2"
_HELPER = '!f() { echo username="$DSTACK_GIT_USER"; echo password="$DSTACK_GIT_TOKEN"; }; f'
_SSH = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new"
_SCP = re.compile(r"(?:[^@/]+@)?([^:/]+):(?!//)(.+)")


class CheckoutError(Exception):
    """The repository cannot be brought in; the message is for the user."""


def is_filled(folder: str) -> bool:
    """Whether there is something at this path."""
    try:
        return bool(os.listdir(folder))
    except FileNotFoundError:
        return False


def filled_error(folder: str) -> CheckoutError:
    """What is told when there is and `if_exists` forbids it."""
    return CheckoutError(
        f"the repository cannot be cloned into {folder}: the folder is not empty; give another `path`, "
        "or keep what is there with `if_exists: skip`"
    )


class Checkout:
    """One clone. `run` blocks; `cancel` may be called from another thread."""

    def __init__(self, repo: RepoSpec, credentials: RepoCredentials, folder: str, diff: bytes, home: str) -> None:
        self._repo = repo
        self._credentials = credentials
        self._folder = folder
        self._diff = diff
        self._url = _https_url(repo.clone_url) if credentials.oauth_token else repo.clone_url
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self._environment.update(HOME=home, GIT_TERMINAL_PROMPT="0", GIT_SSH_COMMAND=_SSH, LC_ALL="C")
        self._options: List[str] = []
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._is_cancelled = False

    def run(self) -> None:
        """Raises CheckoutError."""
        if shutil.which("git", path=self._environment.get("PATH")) is None:
            raise CheckoutError("there is no `git` on the host, and the job's repository needs it: install Git")
        with self._with_credentials():
            self._clone()
            self._check_out()
            if os.path.exists(os.path.join(self._folder, ".gitmodules")):
                self._in_folder("submodule", "update", "--init", "--recursive")
        self._configure()
        if self._diff:
            self._apply()

    def cancel(self) -> None:
        """Ends what runs; `run` then raises CheckoutError."""
        self._is_cancelled = True
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _clone(self) -> None:
        repo = self._repo
        branch = ["--branch", repo.branch] if repo.branch else []
        single = ["--single-branch"] if repo.single_branch else []
        command = ["clone", "--quiet", "--no-checkout"]
        failure = self._git([*command, *single, *branch, "--", self._url, self._folder])
        if failure and repo.hash and "Remote branch" in failure:  # a branch of its own that was never pushed
            failure = self._git([*command, "--", self._url, self._folder])
        if failure:
            raise CheckoutError(f"the repository {_bare(self._url)} cannot be cloned: {failure}")

    def _check_out(self) -> None:
        repo = self._repo
        if not repo.hash:
            self._in_folder("checkout", "--quiet")
            return
        if self._git(["-C", self._folder, "cat-file", "-e", repo.hash + "^{commit}"]):
            failure = self._git(["-C", self._folder, "fetch", "--quiet", "origin", repo.hash])
            if failure:
                raise CheckoutError(
                    f"there is no commit {repo.hash} in the repository {_bare(self._url)}: push it, "
                    f"or name one that is there ({failure})"
                )
        self._in_folder("checkout", "--quiet", *(["-B", repo.branch] if repo.branch else []), repo.hash)

    def _configure(self) -> None:
        repo = self._repo
        for name, value in (("user.name", repo.config_name), ("user.email", repo.config_email)):
            if value:
                self._in_folder("config", name, value)
        if _bare(self._url) != self._url:
            self._in_folder("remote", "set-url", "origin", _bare(self._url))

    def _apply(self) -> None:
        failure = self._git(["-C", self._folder, "apply", "--binary", "--whitespace=nowarn"], self._diff)
        if failure:
            raise CheckoutError(f"the local changes cannot be applied to the repository: {failure}")

    def _in_folder(self, *arguments: str) -> None:
        failure = self._git(["-C", self._folder, *arguments])
        if failure:
            raise CheckoutError(f"`git {arguments[0]}` failed in the job's repository: {failure}")

    def _git(self, arguments: List[str], given: bytes = b"") -> str:
        """Why it failed; empty when it did not."""
        if self._is_cancelled:
            raise CheckoutError("it was stopped")
        command = ["git", *self._options, *arguments]
        self._process = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        if self._is_cancelled:  # while it was started: `cancel` has not seen it
            self.cancel()
        errors = self._process.communicate(given)[1].decode(errors="replace")
        if not self._process.returncode:
            return ""
        return self._without_secrets(errors.strip()) or f"git ended with {self._process.returncode}"

    def _without_secrets(self, text: str) -> str:
        parts = urllib.parse.urlsplit(self._url) if "://" in self._url else None
        for secret in (self._credentials.oauth_token, parts.password if parts else None):
            if secret:
                text = text.replace(secret, "***")
        return text

    @contextlib.contextmanager
    def _with_credentials(self) -> Iterator[None]:
        token, key = self._credentials.oauth_token, self._credentials.private_key
        if token:
            self._use_token(token)
        descriptor = _memory_file(key) if key else None
        if descriptor is not None:
            identity = shlex.quote(f"/proc/{os.getpid()}/fd/{descriptor}")
            self._environment["GIT_SSH_COMMAND"] = f"{_SSH} -o IdentitiesOnly=yes -i {identity}"
        try:
            yield
        finally:
            self._environment.pop("DSTACK_GIT_TOKEN", None)
            self._options = []
            if descriptor is not None:
                os.close(descriptor)

    def _use_token(self, token: str) -> None:
        parts = urllib.parse.urlsplit(self._url)
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._options = ["-c", "credential.helper=", "-c", f"credential.{where}.helper={_HELPER}"]
        secrets: Dict[str, str] = {"DSTACK_GIT_USER": parts.username or TOKEN_USER, "DSTACK_GIT_TOKEN": token}
        self._environment.update(secrets)


def _memory_file(text: str) -> int:
    descriptor = os.memfd_create("key")
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, text.encode() if text.endswith("\n") else text.encode() + b"\n")
    return descriptor


def _bare(url: str) -> str:
    """The URL without a user name and password for HTTP."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return url
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _https_url(url: str) -> str:
    """A token opens HTTPS only: `git@host:path` and `ssh://host/path` are asked for there."""
    match = _SCP.fullmatch(url)
    if match is not None and "://" not in url:
        return f"https://{match.group(1)}/{match.group(2)}"
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "ssh":
        return f"https://{parts.hostname}{parts.path}"
    return url

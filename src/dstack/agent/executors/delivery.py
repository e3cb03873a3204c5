"""Brings a process's repository, files and Python to where they belong, as the job's own user.

It is done in a process of its own, which the supervisor forks and may end: nothing is ever written with more
rights than the job has, and a stop need not wait for a slow server of a repository.
"""

from __future__ import annotations

import json
import os
import signal
import tarfile
from typing import BinaryIO, Dict, NoReturn, Tuple

from dstack.agent import archives, processes, repos
from dstack.agent.executors import equipment
from dstack.agent.executors.job import Account, Place, take_identity
from dstack.agent.protocol import RepoCredentials, RepoSpec, TaskSpec

CHECKOUT = "checkout"
ERROR = "error"


class Delivery:
    """`pid` of the process that delivers, and the pipe from which `result` is read once it has ended."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self.pipe = pipe

    def result(self) -> Tuple[str, str]:
        """Cause (`checkout` or `error`) and message of what went wrong; both empty when nothing did. Blocks."""
        with open(self.pipe, "rb") as pipe:
            data = pipe.read()
        if not data:
            return ERROR, "what the job needs could not be brought in: it was killed within"
        cause, message = json.loads(data)
        return str(cause), str(message)


def start(spec: TaskSpec, folder: str, place: Place) -> Delivery:
    """Begins. Raises OSError."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _deliver(spec, folder, place, writing, parent)
    os.close(writing)
    return Delivery(pid, reading)


def _deliver(spec: TaskSpec, folder: str, place: Place, report: int, parent: int) -> NoReturn:
    """In the forked child; never returns."""
    cause, message = ERROR, "the agent failed to bring in what the job needs"
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        cause, message = _do(spec, folder, place, parent)
    except OSError as error:
        message = f"what the job needs could not be brought in: {error}"
    finally:
        os.write(report, json.dumps([cause, message]).encode())
        os._exit(0)


def _do(spec: TaskSpec, folder: str, place: Place, parent: int) -> Tuple[str, str]:
    uploads: Dict[str, BinaryIO] = {}
    repo = RepoSpec.from_json(spec.repo) if spec.repo else None
    names = [file["name"] for file in spec.files] + ([repo.diff, repo.credentials] if repo else [])
    for name in filter(None, names):  # opened before the job's user is taken on, who cannot reach the folder
        try:
            uploads[name] = open(os.path.join(folder, "files", name), "rb")  # noqa: SIM115 - this process ends
        except FileNotFoundError:
            return ERROR, f"the file {name!r} was not uploaded to the host"
    take_identity(place.account)
    processes.die_with_parent(parent)
    processes.be_seen_by_its_user()
    try:
        if repo is not None:
            _check_out(repo, uploads, place)
    except repos.CheckoutError as error:
        return CHECKOUT, str(error)
    if spec.python and place.venv:
        try:
            equipment.make_venv(spec.python, place.venv, place.path)
        except equipment.Missing as error:
            return ERROR, str(error)
    for file in spec.files:
        message = _unpack(uploads[file["name"]], file["path"], folder, place)
        if message:
            return ERROR, message
    return "", ""


def _check_out(repo: RepoSpec, uploads: Dict[str, BinaryIO], place: Place) -> None:
    if repos.is_filled(place.repo_dir):
        if repo.if_exists == "skip":
            return
        raise repos.filled_error(place.repo_dir)
    diff = uploads[repo.diff].read() if repo.diff else b""
    given = json.loads(uploads[repo.credentials].read()) if repo.credentials else {}
    credentials = RepoCredentials.from_json(given)
    os.makedirs(place.repo_dir, exist_ok=True)
    repos.Checkout(repo, credentials, place.repo_dir, diff, place.account.home).run()


def _unpack(upload: BinaryIO, path: str, folder: str, place: Place) -> str:
    """Why it cannot be done; empty when it was."""
    target = in_home(path, place.account)
    target = os.path.join(place.working_dir, target) if target else place.working_dir
    inside = os.path.normpath(target)
    if is_within(inside, folder) and not is_within(inside, place.root):
        return f"the file {path!r} would leave the job's folder; say where it goes in the job, as in '{path}:data'"
    upload.seek(0)  # the same content may go to several places
    try:
        with tarfile.open(fileobj=upload) as archive:
            archives.unpack(archive, target)
    except (OSError, tarfile.TarError, archives.ArchiveError) as error:
        return f"the files for {path!r} cannot be unpacked into {target}: {error}"
    return ""


def is_within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def in_home(path: str, account: Account) -> str:
    """The path with `~` replaced by the home of the job's user."""
    return account.home + path[1:] if path == "~" or path.startswith("~/") else path

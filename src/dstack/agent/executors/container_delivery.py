"""Brings a task's repository and files into its container before the start; nothing is needed in the image.

All of it becomes one archive, which Docker unpacks. The repository is cloned on the host, in the task's folder.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import tarfile
from typing import Tuple

from dstack.agent import archives, nodes, repos
from dstack.agent.docker import Docker, DockerError, TarFile
from dstack.agent.files import remove
from dstack.agent.protocol import EXECUTOR_ERROR, EXITED_WITH_ERROR, RepoCredentials, RepoSpec
from dstack.agent.tasks import Task

HOSTFILE = "/dstack/mpi/hostfile"
PEEK_BYTES = 64 * 1024


class DeliveryError(Exception):
    """`reason` is that of the task's end; the message is for the user."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def deliver(docker: Docker, task: Task, container: str) -> None:
    """May be repeated. Raises DeliveryError, DockerError, OSError."""
    assert task.spec
    spec = task.spec
    if not (spec.repo or spec.files or spec.hostfile or spec.ssh):
        return
    brings_repo = spec.repo is not None and await _wants_repo(docker, task, container)
    if brings_repo:
        await _clone(task)
    path = task.path("delivery.tar")
    try:
        await asyncio.get_running_loop().run_in_executor(None, _build, task, path, brings_repo)
        await docker.call("PUT", f"/containers/{container}/archive", {"path": "/"}, TarFile(path), seconds=None)
    finally:
        remove(path)
        shutil.rmtree(task.path("checkout"), ignore_errors=True)


async def _wants_repo(docker: Docker, task: Task, container: str) -> bool:
    """Looks into the container's folder, but not again after an agent before this one put something there."""
    assert task.spec
    assert task.spec.repo
    mark = task.path("checkout.wanted")
    if _is_there(mark):
        return True
    folder = task.spec.repo_dir or "/"
    if await _is_filled(docker, container, folder):
        if task.spec.repo.get("if_exists") == "skip":
            return False
        raise DeliveryError(EXITED_WITH_ERROR, str(repos.filled_error(folder)))
    os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return True


async def _is_filled(docker: Docker, container: str, folder: str) -> bool:
    """Whether Docker's archive of the folder has an entry after that of the folder itself."""
    data = b""
    answer = docker.stream("GET", f"/containers/{container}/archive", {"path": folder.rstrip("/") + "/."})
    try:
        async for part in answer:
            data += part
            if len(data) >= PEEK_BYTES:
                break
    except DockerError as error:
        if error.status == 404:
            return False
        raise
    finally:
        await answer.aclose()  # type: ignore[attr-defined]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.next() is not None and archive.next() is not None


async def _clone(task: Task) -> None:
    assert task.spec
    assert task.spec.repo
    repo, folder = RepoSpec.from_json(task.spec.repo), task.path("checkout")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        diff = _read(task, repo.diff) if repo.diff else b""
        given = json.loads(_read(task, repo.credentials)) if repo.credentials else {}
    except FileNotFoundError as error:
        raise DeliveryError(EXECUTOR_ERROR, f"the file {error.filename} was not uploaded to the host") from error
    checkout = repos.Checkout(repo, RepoCredentials.from_json(given), folder, diff, _home())
    running = asyncio.get_running_loop().run_in_executor(None, checkout.run)
    try:
        await asyncio.shield(running)
    except repos.CheckoutError as error:
        raise DeliveryError(EXITED_WITH_ERROR, str(error)) from error
    except asyncio.CancelledError:
        checkout.cancel()
        await asyncio.wait({running})
        raise


def _is_there(path: str) -> bool:
    return os.path.exists(path)


def _home() -> str:
    return os.path.expanduser("~")


def _read(task: Task, name: str) -> bytes:
    with open(task.uploaded(name), "rb") as file:
        return file.read()


def _build(task: Task, path: str, brings_repo: bool) -> None:
    """Writes the archive. Raises DeliveryError, OSError."""
    assert task.spec
    spec, owner = task.spec, _owner(task.spec.user)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        if spec.hostfile:
            entry = tarfile.TarInfo(HOSTFILE)
            entry.size, entry.mode = len(spec.hostfile.encode()), 0o644
            archives.add_entry(archive, entry, owner, io.BytesIO(spec.hostfile.encode()))
        if spec.ssh:
            entry = tarfile.TarInfo(nodes.FOLDER)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            archives.add_entry(archive, entry, (0, 0))
        if brings_repo:
            archives.add_folder(task.path("checkout"), spec.repo_dir or "/", archive, owner)
        for file in spec.files:
            target = os.path.join(spec.working_dir or "/", file["path"])
            _add_upload(task, file["name"], target, archive, owner)


def _add_upload(task: Task, name: str, target: str, into: tarfile.TarFile, owner: Tuple[int, int]) -> None:
    try:
        with tarfile.open(task.uploaded(name)) as archive:
            archives.add_placed(archive, target, into, owner)
    except FileNotFoundError as error:
        raise DeliveryError(EXECUTOR_ERROR, f"the file {name!r} was not uploaded to the host") from error
    except (tarfile.TarError, archives.ArchiveError) as error:
        message = f"the files for {target} cannot be unpacked: {error}"
        raise DeliveryError(EXECUTOR_ERROR, message) from error


def _owner(user: object) -> Tuple[int, int]:
    """Numbers only are known outside of the image; a name's files belong to root, for all to read as they were."""
    name, _, group = str(user or "").partition(":")
    uid = int(name) if name.isdigit() else 0
    return uid, int(group) if group.isdigit() else uid

"""What a process finds on its host besides its own folders: mounted folders, a Python, the CUDA compiler.

A container brings all of that in its image. A process sees the host as it is, so a mount is a link, and what is
not installed cannot be had: each function says then what would help.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any, Dict, List, Optional

CUDA_BIN = "/usr/local/cuda/bin"
VENV_SECONDS = 600


class Missing(Exception):
    """The host does not have what the job needs; the message is for the user."""


def link_mounts(mounts: List[Dict[str, Any]], record: str) -> None:
    """Makes each folder appear at its path by a symbolic link; `record` lists the links made. Raises Missing."""
    for mount in mounts:
        source, target = mount["host_path"], mount["path"]
        if not os.path.exists(source) and mount.get("optional"):
            continue
        try:
            _make_source(source)
            if _is_there(source, target):
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(record, "a") as file:
                file.write(target + "\n")
            _link(source, target)
        except OSError as error:
            if not mount.get("optional"):
                raise Missing(_explain(source, target, error)) from error


def _link(source: str, target: str) -> None:
    """Another task may make the same link, or remove it, at this moment."""
    while not _is_there(source, target):
        try:
            os.symlink(source, target)
        except FileExistsError:
            continue


def _make_source(path: str) -> None:
    if not os.path.exists(path):
        os.makedirs(path)


def _is_there(source: str, target: str) -> bool:
    """Whether the target is the source already. Raises Missing when it is something else."""
    if not os.path.lexists(target):
        return False
    if os.path.realpath(target) == os.path.realpath(source):
        return True
    raise Missing(
        f"{source} cannot be mounted at {target}: there is something else on the host, and a process sees the "
        "host's own files; mount it at another path, or give an image"
    )


def _explain(source: str, target: str, error: OSError) -> str:
    return (
        f"{source} cannot be mounted at {target}: {error.strerror} ({error.filename}); a process gets a link "
        "there, which the agent may not make: mount it at a path that it may write to, or give an image"
    )


def unlink_mounts(record: str, kept: List[str]) -> None:
    """Removes the links that were made, but for those that other tasks use."""
    if not os.path.exists(record):
        return
    with open(record) as file:
        targets = file.read().splitlines()
    for target in targets:
        if target not in kept and os.path.islink(target):
            os.unlink(target)


def cuda_path(path: str) -> str:
    """The search path with the CUDA compiler in it. Raises Missing."""
    for candidate in (path, f"{path}{os.pathsep}{CUDA_BIN}"):
        if shutil.which("nvcc", path=candidate):
            return candidate
    raise Missing(
        "`nvcc: true` needs the CUDA toolkit, but nvcc is neither on the host's PATH nor in /usr/local/cuda/bin: "
        "install it, or give an image that has it"
    )


def make_venv(version: str, folder: str, path: str) -> None:
    """A virtual environment with pip, of exactly this version of Python (`3.12`). Raises Missing."""
    failures = []
    for command in _venv_commands(version, folder, path):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=VENV_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            failures.append(f"{command[0]}: {error}")
            continue
        if done.returncode == 0:
            return
        failures.append(f"{command[0]}: {_last_line(done.stderr or done.stdout)}")
    why = f" ({'; '.join(failures)})" if failures else ""
    raise Missing(
        f"`python: {version}` cannot be had on this host{why}: install python{version} with its venv module, "
        "or uv, or give an image"
    )


def _venv_commands(version: str, folder: str, path: str) -> List[List[str]]:
    interpreter: Optional[str] = shutil.which(f"python{version}", path=path)
    if interpreter is None and version == "{}.{}".format(*sys.version_info[:2]):
        interpreter = sys.executable
    uv = shutil.which("uv", path=path)
    commands = [] if interpreter is None else [[interpreter, "-m", "venv", "--clear", folder]]
    return commands if uv is None else [*commands, [uv, "venv", "--quiet", "--seed", "--python", version, folder]]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it failed without a word"

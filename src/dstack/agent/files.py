"""Writing files so that a crash leaves the old or the new content, never half of it."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, Optional


def write_atomically(path: str, data: bytes, sync: bool = False) -> None:
    """Replaces `path` with `data`, readable by the owner alone. With `sync` it also survives a power cut."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError:
        remove(temporary)
        raise
    if sync:
        sync_folder(os.path.dirname(path))


def write_json(path: str, data: Dict[str, Any], sync: bool = False) -> None:
    """`write_atomically` of a JSON object."""
    write_atomically(path, json.dumps(data, separators=(",", ":")).encode(), sync)


def read_json(path: str) -> Optional[Dict[str, Any]]:
    """The JSON object in `path`; None when there is no such file. Raises ValueError when it is not JSON."""
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read())
    except FileNotFoundError:
        return None
    if not isinstance(data, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return data


def sync_folder(path: str) -> None:
    """Makes renames in the folder `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Removes a file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return

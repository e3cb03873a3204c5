"""Keeps a second server off the same SQLite file."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dstack.server.db.errors import DatabaseBusy, DatabaseError


class LockFile:
    """An advisory lock that ends with the process, however it ends. The file names its holder."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path) -> LockFile:
        """Raises `DatabaseBusy`, naming the process that holds it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DatabaseError(f"Cannot make the lock file {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise DatabaseBusy(
                f"The database is locked by another server (process {pid or 'unknown'}, lock file {path}). "
                "Stop it first, or give this one another DSTACK_SERVER_DIR or DSTACK_DATABASE_URL."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """The file stays: removing it would let two servers lock two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

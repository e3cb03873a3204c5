"""Logs as files: `<root>/<project>/logs/<run>/<job submission id>/{job,runner}.log`."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote

from dstack.core.errors import StoreError
from dstack.server.stores.logs.base import Announcer, Frame, LogKey, LogPage, LogQuery, LogStore
from dstack.server.stores.logs.logfile import LogFile

MAX_KNOWN_FILES = 1024
"""Files whose end and index are kept in memory; others are looked at again when they are used."""


class FileLogStore:
    """The default store. All file work happens in threads; `root` is `<server dir>/projects`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._announcer = Announcer()
        self._files: OrderedDict[Path, LogFile] = OrderedDict()
        self._files_lock = threading.Lock()

    async def position(self, key: LogKey) -> int:
        """See `LogStore.position`."""
        return await asyncio.to_thread(self._file(key, diagnose=False).position)

    async def append(self, key: LogKey, frames: Sequence[Frame], end_offset: int) -> None:
        """See `LogStore.append`."""
        if frames:
            await asyncio.to_thread(self._file(key, diagnose=False).append, frames, end_offset)
            self._announcer.announce(key)

    async def note(self, key: LogKey, timestamp_us: int, text: str) -> None:
        """See `LogStore.note`."""
        line = text.rstrip("\n") + "\n"
        file = self._file(key, diagnose=True)
        await asyncio.to_thread(file.append, [(timestamp_us, line.encode())], None)

    async def poll(self, key: LogKey, query: LogQuery) -> LogPage:
        """See `LogStore.poll`."""
        return await asyncio.to_thread(self._file(key, diagnose=query.diagnose).poll, query)

    async def delete(self, key: LogKey) -> None:
        """See `LogStore.delete`."""
        await asyncio.to_thread(self._delete, self._folder(key))

    def listen(self, key: LogKey, listener: Callable[[], None]) -> AbstractContextManager[None]:
        """See `LogStore.listen`."""
        return self._announcer.listen(key, listener)

    async def close(self) -> None:
        """No file is held open between calls."""
        self._files.clear()

    def _file(self, key: LogKey, *, diagnose: bool) -> LogFile:
        path = self._folder(key) / ("runner.log" if diagnose else "job.log")
        with self._files_lock:
            file = self._files.pop(path, None) or LogFile(path)
            self._files[path] = file
            if len(self._files) > MAX_KNOWN_FILES:
                self._files.popitem(last=False)
            return file

    def _folder(self, key: LogKey) -> Path:
        run = self._root / _as_name(key.project_name) / "logs" / _as_name(key.run_name)
        return run / str(key.job_submission_id)

    def _delete(self, folder: Path) -> None:
        with self._files_lock:
            for name in ("job.log", "runner.log"):
                self._files.pop(folder / name, None)
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"Cannot delete logs in {folder}: {error.strerror or error}") from error


def _as_name(name: str) -> str:
    """A name as the name of one folder: nothing that a request holds may lead out of the root."""
    quoted = quote(name, safe="")
    return quoted.replace(".", "%2E") if quoted.strip(".") == "" else quoted


_: Callable[[Path], LogStore] = FileLogStore

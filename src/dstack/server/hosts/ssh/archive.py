"""The agent as the one file that goes to hosts, built when it is first needed."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

from dstack.core.errors import HostError


class Archive(NamedTuple):
    """The file's bytes and their SHA-256."""

    content: bytes
    sha256: str


class AgentArchive:
    """Builds the archive of this server's own version once a process."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "agent.pyz"
        self._building: asyncio.Task[Archive] | None = None

    async def get(self) -> Archive:
        """Raises HostError when it cannot be built."""
        if self._building is None or (self._building.done() and self._building.exception() is not None):
            self._building = asyncio.ensure_future(self._build())
        return await asyncio.shield(self._building)

    async def _build(self) -> Archive:
        await asyncio.to_thread(self._path.parent.mkdir, parents=True, exist_ok=True)
        command = (sys.executable, "-m", "dstack.agent.bundle", str(self._path))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
        output, _ = await process.communicate()
        if process.returncode:
            raise HostError("The agent cannot be packed for hosts", detail=output.decode(errors="replace"))
        content = await asyncio.to_thread(self._path.read_bytes)
        return Archive(content, hashlib.sha256(content).hexdigest())

"""Where a watcher puts job output: the part of a log store that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID


class LogSink(Protocol):
    """Bound to a log store by the application. Both calls raise StoreError."""

    async def position(self, project_name: str, run_name: str, job_id: UUID) -> int:
        """Offset in the agent's log up to which everything is stored."""
        ...

    async def append(
        self, project_name: str, run_name: str, job_id: UUID, frames: Sequence[tuple[int, bytes]], end_offset: int
    ) -> None:
        """Stores frames of which the last ends at `end_offset`; repeating it changes nothing."""
        ...

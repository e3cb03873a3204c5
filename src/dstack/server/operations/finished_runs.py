"""Answers about runs that have ended, kept: they never change again, and most of every page is made of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from uuid import UUID

import orjson
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.runs import RunStatus
from dstack.server.db.queries import runs as queries
from dstack.server.db.queries.runs import RunHead
from dstack.server.operations import run_answers
from dstack.server.operations.connection_info import Door

MAX_BYTES = 16 * 1024 * 1024
FINISHED = frozenset(status.value for status in RunStatus if status.is_finished())
View = tuple[bool, int | None]
"""With jobs or without, and how many of the newest submissions of each."""


class FinishedRuns:
    """JSON texts by run and view, least recently used dropped first. Right while the run's head is the same."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self.size_bytes = 0
        self._texts: OrderedDict[tuple[UUID, View], tuple[RunHead, bytes]] = OrderedDict()

    async def load(
        self, session: AsyncSession, heads: Sequence[RunHead], view: View, *, ssh: Door
    ) -> list[orjson.Fragment]:
        """The runs in the order of their heads; those that are not at hand in two queries."""
        texts = {head.id: self._find(head, view) for head in heads}
        missing = [id for id, text in texts.items() if text is None]
        with_jobs, submissions = view
        if missing:
            rows = await queries.list_by_ids(session, missing)
            documents = await run_answers.load(
                session, rows, ssh=ssh, with_jobs=with_jobs, submissions=submissions
            )
            texts |= {row["id"]: run_answers.dump(document) for row, document in zip(rows, documents, strict=True)}
            current = {
                row["id"]: RunHead(row["id"], row["version"], row["status"], row["deleted"]) for row in rows
            }
            for id, head in current.items():
                self._keep(head, view, texts[id])
        return [orjson.Fragment(text) for head in heads if (text := texts[head.id]) is not None]

    def _find(self, head: RunHead, view: View) -> bytes | None:
        kept = self._texts.get((head.id, view))
        if kept is None or kept[0] != head:
            return None
        self._texts.move_to_end((head.id, view))
        return kept[1]

    def _keep(self, head: RunHead, view: View, text: bytes | None) -> None:
        if text is None or head.status not in FINISHED:
            return
        replaced = self._texts.pop((head.id, view), None)
        self.size_bytes += len(text) - (0 if replaced is None else len(replaced[1]))
        self._texts[head.id, view] = (head, text)
        while self.size_bytes > self._max_bytes:
            _, (_, dropped) = self._texts.popitem(last=False)
            self.size_bytes -= len(dropped)

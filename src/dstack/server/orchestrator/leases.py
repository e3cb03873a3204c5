"""Who works on a row: on PostgreSQL one replica at a time, by a lease in the row; on SQLite there is only us."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Mapping

from sqlalchemy import Table

from dstack.server.db.engine import Database
from dstack.server.db.errors import DatabaseError
from dstack.server.db.queries import reconciled
from dstack.server.db.queries.reconciled import Head
from dstack.server.orchestrator.decision import Key, Kind

LEASE_SECONDS = 10.0
"""How long a dead replica keeps its keys from the others. Renewed at a third of it while working."""

logger = logging.getLogger(__name__)


class Busy(Exception):
    """Another replica works on the key."""


class Leases:
    """Takes, renews and gives back. What is written under a lease is guarded by its token (`queries.reconciled`),
    so a replica that lost its lease without noticing writes nothing."""

    def __init__(self, database: Database, tables: Mapping[Kind, Table], seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._tables = tables
        self._seconds = seconds
        self._held: dict[Key, Head] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._is_shared = database.dialect == "postgresql"
        self.owner = f"{socket.gethostname()[:32]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    async def acquire(self, key: Key) -> Head | None:
        """What the loop knows of the row, under a lease; None when there is no such row. Raises `Busy`."""
        table = self._tables[key.kind]
        if not self._is_shared:
            async with self._database.session() as session:
                return await reconciled.read_head(session, table, key.id)
        async with self._database.transaction() as session:
            head = await reconciled.acquire(session, table, key.id, self.owner, self._seconds)
            is_there = head is not None or await reconciled.exists(session, table, key.id)
        if head is None and is_there:
            raise Busy
        if head is not None:
            self._held[key] = head
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew(), name="leases")
        return head

    async def release(self, key: Key, head: Head) -> None:
        """Unless it was given back already with the last write."""
        self._held.pop(key, None)
        if head.token is None:
            return
        try:
            async with self._database.transaction() as session:
                await reconciled.release(session, self._tables[key.kind], key.id, head.token)
        except DatabaseError as error:
            logger.warning("%s=%s: the lease could not be given back and will run out: %s", *key, error)

    async def stop(self) -> None:
        """Ends the renewing, and with it what is still held, soon."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
            self._renewing = None

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 3)
            for kind, table in self._tables.items():
                tokens = [head.token for key, head in self._held.items() if key.kind is kind and head.token]
                if not tokens:
                    continue
                try:
                    async with self._database.transaction() as session:
                        await reconciled.renew(session, table, tokens, self._seconds)
                except DatabaseError as error:
                    logger.warning("Leases could not be renewed: %s", error)
                except Exception:
                    logger.exception("Leases could not be renewed")

"""Which hosts this process watches: all of them on SQLite, those it holds a lease of on PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from dstack.core.errors import DstackError
from dstack.server import clock
from dstack.server.db.queries import watching
from dstack.server.hosts.connections import Agents, parse_address
from dstack.server.hosts.watcher import HostWatcher, WatchContext

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=10)
"""How long nobody watches the hosts of a replica that died."""
RENEW_EVERY_S = 3.0
LOOK_EVERY_S = 5.0
REST_FACTOR = 10.0
"""After a look, so many times as long as it took is rested, however many hosts change meanwhile."""
LONGEST_REST_S = 0.5
CLAIMED_AT_ONCE = 200


class WatcherPool:
    """Starts and ends watchers as instances come and go; woken by every change of an instance."""

    def __init__(self, owner: str, agents: Agents, context: WatchContext) -> None:
        self._owner = owner
        self._agents = agents
        self._context = context
        self._watched: dict[UUID, tuple[str, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self._renewed_at = float("-inf")
        self._loop: asyncio.Task[None] | None = None
        self._deaf: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Needs a running event loop."""
        self._deaf = self._context.database.wakeups.listen(self._hear)
        self._loop = asyncio.ensure_future(self._run())

    def watched(self) -> dict[UUID, str]:
        """The hosts that are watched now, with the JSON of their addresses."""
        return {id: address for id, (address, _) in self._watched.items()}

    def _hear(self, name: str) -> None:
        if name.startswith("instance:"):
            self._changed.set()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            began = time.monotonic()
            try:
                self._apply({instance.id: instance.address for instance in await self._find()})
            except DstackError as error:
                logger.warning("watchers: %s", error.detail)
            except Exception:
                logger.exception("watchers: a look at the hosts failed")
            await asyncio.sleep(min(LONGEST_REST_S, REST_FACTOR * (time.monotonic() - began)))
            is_shared = self._context.database.dialect != "sqlite"
            await clock.happens_within(self._changed, RENEW_EVERY_S if is_shared else LOOK_EVERY_S)

    async def _find(self) -> list[watching.WatchedInstance]:
        database, now = self._context.database, self._context.now()
        if database.dialect == "sqlite":
            async with database.session() as session:
                return await watching.list_watched_instances(session)
        at, until = time.monotonic(), now + LEASE
        is_due = at - self._renewed_at >= RENEW_EVERY_S * 0.9
        async with database.transaction() as session:
            if is_due:
                await watching.renew_claims(session, self._owner, until=until)
            claimed = await watching.claim_instances(
                session, self._owner, now=now, until=until, limit=CLAIMED_AT_ONCE
            )
        if is_due:
            self._renewed_at = at
        return claimed

    def _apply(self, wanted: dict[UUID, str]) -> None:
        for id, (address, watching_it) in list(self._watched.items()):
            if wanted.get(id) != address or watching_it.done():
                self._watched.pop(id)[1].cancel()
        for id, address in wanted.items():
            if id not in self._watched:
                where = parse_address(address)
                is_remote = where.agent_socket is None
                watcher = HostWatcher(id, self._agents.client(where), self._context, is_remote=is_remote)
                self._watched[id] = (address, asyncio.ensure_future(watcher.run()))

    async def stop(self) -> None:
        """Ends all watchers and gives their leases back."""
        self._deaf()
        tasks = [task for _, task in self._watched.values()] + ([self._loop] if self._loop else [])
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._context.database.dialect != "sqlite":
            async with self._context.database.transaction() as session:
                await watching.release_instances(session, self._owner)

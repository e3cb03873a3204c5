"""Which gateways this server is connected to: all that run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

from dstack.core.errors import DstackError
from dstack.server import clock
from dstack.server.db.queries import gateways as queries
from dstack.server.gateways.keeping import GatewayKeeper, Keeping

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
ROUTES = "routes"
"""The wake-up that says that something about services has changed."""


class GatewayPool:
    """`start`, `stop`: connections come and go with gateways; the gateways serve on without them."""

    def __init__(self, shared: Keeping) -> None:
        self._shared = shared
        self._keepers: dict[UUID, tuple[GatewayKeeper, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._deaf: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Needs a running event loop."""
        self._deaf = self._shared.database.wakeups.listen(self._hear)
        self._loop = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        self._deaf()
        tasks = [task for _, task in self._keepers.values()] + ([self._loop] if self._loop else [])
        self._keepers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _hear(self, name: str) -> None:
        if name == ROUTES:
            for keeper, _ in self._keepers.values():
                keeper.look()
        elif name.startswith(("gateway_replica:", "gateway:")):
            self._changed.set()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                async with self._shared.database.session() as session:
                    self._apply(await queries.list_running_replicas(session))
            except DstackError as error:
                logger.warning("gateways: %s", error.detail)
            except Exception:
                logger.exception("gateways: a look at them failed")
            await clock.happens_within(self._changed, LOOK_EVERY_S)

    def _apply(self, wanted: list[queries.RunningReplica]) -> None:
        ids = {replica.id for replica in wanted}
        for id in self._keepers.keys() - ids:
            self._keepers.pop(id)[1].cancel()
        for replica in wanted:
            if replica.id not in self._keepers:
                keeper = GatewayKeeper(replica, self._shared)
                self._keepers[replica.id] = (keeper, asyncio.ensure_future(keeper.run()))

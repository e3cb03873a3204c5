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
        self._told: set[UUID] = set()
        """Runs whose gateway refuses them, which is on record."""
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
                    wanted = await queries.list_running_replicas(session)
                self._apply(wanted)
                await self._tell_failures(wanted)
            except DstackError as error:
                logger.warning("gateways: %s", error.detail)
            except Exception:
                logger.exception("gateways: a look at them failed")
            await clock.happens_within(self._changed, LOOK_EVERY_S)

    async def _tell_failures(self, replicas: list[queries.RunningReplica]) -> None:
        """Of services that no machine of their gateway publishes: their runs end with that."""
        failed: dict[UUID, str] = {}
        for gateway_id in {replica.gateway_id for replica in replicas}:
            of_each = [self._keepers[one.id][0].failures for one in replicas if one.gateway_id == gateway_id]
            first = of_each[0] or {}
            failed |= {run: why for run, why in first.items() if all(other and run in other for other in of_each)}
        new = {run_id: why for run_id, why in failed.items() if run_id not in self._told}
        self._told = set(failed)
        if new:
            async with self._shared.database.transaction() as session:
                await queries.set_gateway_errors(session, new)
            self._shared.database.wakeups.publish(f"run:{run_id}" for run_id in new)

    def _apply(self, wanted: list[queries.RunningReplica]) -> None:
        ids = {replica.id for replica in wanted}
        for id in self._keepers.keys() - ids:
            self._keepers.pop(id)[1].cancel()
        for replica in wanted:
            if replica.id not in self._keepers:
                keeper = GatewayKeeper(replica, self._shared)
                self._keepers[replica.id] = (keeper, asyncio.ensure_future(keeper.run()))

"""The SSH door as the rest of the server sees it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import socket
from typing import TYPE_CHECKING, Any

from dstack.core.errors import DstackError
from dstack.server.hosts.connections import Agents
from dstack.server.operations.context import Context
from dstack.server.ssh_door import host_key
from dstack.server.ssh_door.entry import Carried
from dstack.server.ssh_door.visits import Visits

if TYPE_CHECKING:  # it loads asyncssh
    from dstack.server.ssh_door.reception import Reception

logger = logging.getLogger(__name__)


class SshDoor:
    """`open` once the server runs, `close` before it ends. asyncssh is loaded by the first who needs it."""

    def __init__(self, ctx: Context, agents: Agents) -> None:
        self.ctx = ctx
        self._agents = agents
        self._visits = Visits(ctx)
        self._loading: asyncio.Task[Reception] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._acceptor: Any = None
        self._taken: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Makes the host key known before anybody asks. Without it `open` says why the door stays closed."""
        with contextlib.suppress(DstackError):
            key = await host_key.ensure(self.ctx.database, self.ctx.encryption)
            self.ctx.ssh_host_key = " ".join(key.public.split()[:2])

    def open(self, listener: socket.socket | None) -> None:
        """Loads what is needed while the server runs already; those who connect meanwhile wait."""
        self._opening = asyncio.ensure_future(self._open(listener))

    async def adopt(self, connection: socket.socket, carried: Carried) -> None:
        """Speaks SSH on a connection that came by WebSocket. Raises DstackError when the door cannot be opened."""
        reception = await self._reception()
        task = asyncio.ensure_future(reception.take(connection, carried))
        self._taken.add(task)
        task.add_done_callback(self._taken.discard)

    async def close(self) -> None:
        """Ends all connections; jobs and what runs in them live on or end with their connection."""
        tasks = [task for task in (self._opening, self._loading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._acceptor is not None:
            self._acceptor.close()
        await self._visits.end("The server is ending")

    async def _open(self, listener: socket.socket | None) -> None:
        try:
            reception = await self._reception()
            if listener is not None:
                self._acceptor = await reception.listen(listener)
        except DstackError as error:
            logger.error("The SSH door stays closed: %s", error.detail)
            with contextlib.suppress(OSError):
                if listener is not None:
                    listener.close()

    async def _reception(self) -> Reception:
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.ensure_future(self._load())
        return await asyncio.shield(self._loading)

    async def _load(self) -> Reception:
        key = await host_key.ensure(self.ctx.database, self.ctx.encryption)
        module = await asyncio.to_thread(importlib.import_module, "dstack.server.ssh_door.reception")
        reception: Reception = module.Reception(self.ctx, self._agents, self._visits, key)
        return reception

"""Carries wake-ups between the replicas over PostgreSQL's LISTEN/NOTIFY.

One connection of its own, made again with back-off when it breaks. What is lost meanwhile is what the slow
sweep is for; caches that wake-ups empty are emptied by `RESET` after each gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import uuid
from collections.abc import Iterator
from typing import Any

import asyncpg
from sqlalchemy.engine import URL

from dstack.server.wakeups import RESET_TOPICS, Wakeups

CHANNEL = "dstack_wakeups"
MAX_PAYLOAD_BYTES = 7_900
"""PostgreSQL refuses 8,000 and more."""
MAX_BACKLOG = 100_000
"""Names kept while disconnected; beyond it the sweep has to do."""
FIRST_DELAY_S, MAX_DELAY_S = 0.1, 10.0

logger = logging.getLogger(__name__)


class Carrier:
    """Sends what is published here to the others, delivers here what they publish."""

    def __init__(self, url: URL, wakeups: Wakeups) -> None:
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._wakeups = wakeups
        self._origin = uuid.uuid4().hex[:12]
        self._outbox: dict[str, None] = {}
        self._stir = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: asyncpg.Connection[Any] | None = None

    async def start(self) -> None:
        """Returns once it listens. Raises what asyncpg raises if it cannot the first time."""
        self._connection = await self._connect()
        self._wakeups.carry_with(self.send)
        self._task = asyncio.create_task(self._run(), name="wakeups-carrier")

    async def stop(self) -> None:
        self._wakeups.carry_with(None)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._close()

    def send(self, names: list[str]) -> None:
        """Never blocks: the names go out with the next batch."""
        if len(self._outbox) + len(names) > MAX_BACKLOG:
            logger.warning("Too many wake-ups wait for the database; %d left to the sweep", len(names))
            return
        self._outbox.update(dict.fromkeys(names))
        self._stir.set()

    async def _run(self) -> None:
        delay = FIRST_DELAY_S
        while True:
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                    self._wakeups.deliver(RESET_TOPICS)
                delay = FIRST_DELAY_S
                await self._carry(self._connection)
            except (OSError, asyncio.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                logger.warning("Wake-ups between replicas are interrupted (%s); again in %.1f s", error, delay)
            await self._close()
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 2, MAX_DELAY_S)

    async def _close(self) -> None:
        """Within two seconds, politely if the server still answers."""
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return
        try:
            await connection.close(timeout=2)
        except (OSError, asyncio.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()

    async def _connect(self) -> asyncpg.Connection[Any]:
        connection = await asyncpg.connect(
            self._dsn, timeout=10, command_timeout=10, server_settings={"application_name": "dstack-wakeups"}
        )
        await connection.add_listener(CHANNEL, self._receive)
        connection.add_termination_listener(lambda _: self._stir.set())
        return connection

    async def _carry(self, connection: asyncpg.Connection[Any]) -> None:
        while True:
            await self._stir.wait()
            self._stir.clear()
            if connection.is_closed():
                raise ConnectionResetError("the connection was closed")
            waiting, self._outbox = self._outbox, {}
            try:
                for payload in _payloads(self._origin, list(waiting)):
                    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
            except BaseException:
                self._outbox = {**waiting, **self._outbox}
                self._stir.set()
                raise

    def _receive(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        origin, *names = json.loads(str(payload))
        if origin != self._origin:
            self._wakeups.deliver(names)


def _payloads(origin: str, names: list[str]) -> Iterator[str]:
    """JSON lists that begin with who sent them, each short enough for one notification."""
    batch: list[str] = [origin]
    size = len(origin) + 4
    for name in names:
        length = len(json.dumps(name)) + 2
        if size + length > MAX_PAYLOAD_BYTES and len(batch) > 1:
            yield json.dumps(batch)
            batch, size = [origin], len(origin) + 4
        batch.append(name)
        size += length
    if len(batch) > 1:
        yield json.dumps(batch)

"""Connections to replicas, kept open between requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Protocol, cast

from dstack.proxy.repeated import ResponseHeads

MAX_IDLE_PER_REPLICA = 512
TUNNELLED = "ssh:"
"""How the address of a replica on another machine begins."""
MAX_IDLE_SECONDS = 4.0
"""Below the 5 s after which common HTTP servers close a silent connection, so that few requests meet that."""


class ReplicaTimeout(Exception):
    """The replica was silent for too long."""


class Ways(Protocol):
    """Leads to replicas that are not on this machine, whose addresses begin with `ssh:`."""

    async def open(self, address: str) -> str:
        """The path of a Unix socket that leads there. Raises `OSError`."""
        ...

    def distrust(self, address: str, path: str) -> None:
        """That socket took no connection."""
        ...


class Exchanging(Protocol):
    """What a busy connection tells of its replica."""

    @property
    def service_id(self) -> str: ...
    def on_replica_data(self, data: bytes) -> None: ...
    def on_replica_lost(self, error: Exception | None) -> None: ...
    def on_replica_writable(self, *, is_writable: bool) -> None: ...


class Upstream(asyncio.Protocol):
    """One connection to a replica: idle in the pool, or busy with one exchange."""

    __slots__ = (
        "_pool", "address", "exchange", "heads", "is_lost", "is_reused", "is_tunnelled", "quiet_ticks",
        "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool, address: str) -> None:
        self._pool = pool
        self.address = address
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.exchange: Exchanging | None = None
        self.heads = ResponseHeads()
        self.is_reused = False
        self.is_tunnelled = address.startswith(TUNNELLED)
        self.is_lost = False
        self.quiet_ticks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._pool.add(self)

    def data_received(self, data: bytes) -> None:
        self.quiet_ticks = 0
        if self.exchange is not None:
            self.exchange.on_replica_data(data)
        else:  # an answer nobody asked for: the connection can't be trusted any more
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._pool.remove(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.on_replica_lost(exc)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.on_replica_writable(is_writable=False)

    def resume_writing(self) -> None:
        self.quiet_ticks = 0
        if self.exchange is not None:
            self.exchange.on_replica_writable(is_writable=True)

    def abort(self) -> None:
        """Ends it without telling the exchange."""
        self.exchange = None
        self.is_lost = True
        self.transport.abort()

    def time_out(self) -> None:
        exchange = self.exchange
        self.abort()
        if exchange is not None:
            exchange.on_replica_lost(ReplicaTimeout())


class Pool:
    """`timeout`: seconds without a byte either way until a busy connection is given up; also for connecting.
    `ways`: None where all replicas are on this machine."""

    def __init__(self, *, timeout: float, ways: Ways | None = None) -> None:
        self.timeout = timeout
        self._ways = ways
        self._tick = min(1.0, timeout / 4)
        self._idle: dict[str, list[Upstream]] = {}
        self._all: set[Upstream] = set()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, address: str) -> Upstream | None:
        """The idle connection that was used last."""
        idle = self._idle.get(address)
        while idle:
            upstream = idle.pop()
            if not upstream.is_lost and not upstream.transport.is_closing():
                upstream.is_reused = True
                upstream.quiet_ticks = 0
                return upstream
        return None

    def give_back(self, upstream: Upstream) -> None:
        upstream.exchange = None
        idle = self._idle.setdefault(upstream.address, [])
        if upstream.is_lost or len(idle) >= MAX_IDLE_PER_REPLICA:
            upstream.abort()
            return
        upstream.quiet_ticks = 0
        idle.append(upstream)

    async def connect(self, address: str) -> Upstream:
        """Raises `OSError`, or `ReplicaTimeout`."""
        try:
            return await asyncio.wait_for(self._connect(address), self.timeout)
        except asyncio.TimeoutError as error:
            raise ReplicaTimeout from error

    async def _connect(self, address: str) -> Upstream:
        if address.startswith(TUNNELLED):
            return await self._connect_through(address)
        if address.startswith("unix:"):
            return await self._connect_unix(address, address.removeprefix("unix:"))
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, tcp = await loop.create_connection(lambda: Upstream(self, address), host.strip("[]"), int(port))
        return tcp

    async def _connect_unix(self, address: str, path: str) -> Upstream:
        loop = asyncio.get_running_loop()
        _, unix = await loop.create_unix_connection(lambda: Upstream(self, address), path)
        return unix

    async def _connect_through(self, address: str) -> Upstream:
        """By a tunnel; by a new one where the known one is found broken."""
        if self._ways is None:
            raise ConnectionRefusedError(f"There is no way to {address}")
        path = await self._ways.open(address)
        try:
            return await self._connect_unix(address, path)
        except OSError:
            self._ways.distrust(address, path)
            return await self._connect_unix(address, await self._ways.open(address))

    def open_addresses(self) -> set[str]:
        """Of replicas to which there is a connection."""
        return {upstream.address for upstream in self._all}

    def busy(self) -> Counter[tuple[str, str]]:
        """Requests on their way, by service and address."""
        return Counter(
            (upstream.exchange.service_id, upstream.address)
            for upstream in self._all
            if upstream.exchange is not None
        )

    def add(self, upstream: Upstream) -> None:
        self._all.add(upstream)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick, self._sweep)

    def remove(self, upstream: Upstream) -> None:
        self._all.discard(upstream)
        idle = self._idle.get(upstream.address)
        if idle is None:
            return
        if upstream in idle:
            idle.remove(upstream)
        if not idle:
            del self._idle[upstream.address]

    def _sweep(self) -> None:
        """One timer for all connections costs requests nothing."""
        self._timer = None
        for upstream in list(self._all):
            upstream.quiet_ticks += 1
            quiet_seconds = (upstream.quiet_ticks - 1) * self._tick
            if upstream.exchange is not None and quiet_seconds >= self.timeout:
                upstream.time_out()
            elif upstream.exchange is None and quiet_seconds >= MAX_IDLE_SECONDS:
                upstream.abort()
        if self._all:
            self._timer = asyncio.get_running_loop().call_later(self._tick, self._sweep)

    def close(self) -> None:
        """Ends every idle connection, and the busy ones, whose clients are cut."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for upstream in list(self._all):
            exchange = upstream.exchange
            upstream.abort()
            if exchange is not None:
                exchange.on_replica_lost(ConnectionAbortedError("the proxy is closing"))

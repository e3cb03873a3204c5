"""A proxy on a free port, and a replica that does what its request's path says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvicorn

from dstack.core.errors import TooManyAttempts
from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.limits import RateLimit
from dstack.proxy.pool import Pool, Ways
from dstack.proxy.protocol import make_http_protocol
from dstack.proxy.repo import Service
from dstack.proxy.waking import HoldLimits, Waking

TOKEN = "good"
MAX_BODY_BYTES = 30_000_000
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Replica:
    """Records the requests it gets; `behaviour` answers them."""

    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                if not await self.answer(head, reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.lost.set()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def answer(  # noqa: C901, PLR0912 # one branch for each behaviour
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """False: the connection ends."""
        path = head.split(b" ")[1].decode()
        if "/continue" in path:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "/early" in path:
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            await writer.drain()
            return False
        body = await self.read_body(head, reader)
        self.bodies.append(body)
        if "/die-before" in path:
            return False
        if "/die-mid" in path:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
            return False
        if "/die-chunked" in path:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await writer.drain()
            return False
        if "/until-close" in path:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
            await writer.drain()
            return False
        if "/close-after" in path:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
            return False
        if "/chunked" in path:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            writer.write(b"6\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n")
        elif "/stream" in path:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(1000000):
                writer.write(b"5\r\ntick\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        elif "/silent" in path:
            await reader.read(1)
            return False
        elif "/ambiguous" in path:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na")
        elif "/ws" in path:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            while data := await reader.read(65536):
                writer.write(data.upper())
            return False
        elif "/cors" in path:
            writer.write(
                b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://theirs\r\nContent-Length: 0\r\n\r\n"
            )
        elif "/no-content" in path:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        elif "/large" in path:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
            for _ in range(200):
                writer.write(b"x" * 100000)
                await writer.drain()
        else:
            length = 5 + len(body)
            writer.write(b"HTTP/1.1 200 OK\r\nServer: replica\r\nContent-Length: %d\r\n\r\n" % length)
            if not head.startswith(b"HEAD"):
                writer.write(b"body:" + body)
        await writer.drain()
        return True

    async def read_body(self, head: bytes, reader: asyncio.StreamReader) -> bytes:
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
            return body
        if b"content-length: " in lower:
            return await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        return b""


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    replica = Replica()
    server = await asyncio.start_server(replica.handle, "127.0.0.1", 0)
    replica.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield replica


@dataclass
class Proxy:
    port: int
    deps: ProxyDependencies
    services: dict[tuple[str, str], Service]
    repo: StaticRepo

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)

    async def exchange(self, data: bytes, *, is_closing: bool = True) -> bytes:
        """Everything that comes back until the connection ends."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(-1), 20)
        writer.close()
        return answer

    def get(
        self,
        path: str,
        *lines: str,
        method: str = "GET",
        version: str = "1.1",
        close: bool = True,
        run: str = "s",
    ) -> bytes:
        """Bytes of a request to the service `main/<run>` with a good token."""
        fields = [
            "Host: example",
            f"Authorization: Bearer {TOKEN}",
            *lines,
            *(["Connection: close"] if close else []),
        ]
        start = f"{method} /proxy/services/main/{run}{path} HTTP/{version}"
        return "\r\n".join([start, *fields, "", ""]).encode()


class StaticRepo:
    def __init__(self, services: dict[tuple[str, str], Service]) -> None:
        self.services = services
        self.change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.woken: list[str] = []
        self.waker: tuple[str, ...] | None = None
        """What the service `sleepy` gets as replicas when it is woken; None: nothing happens."""

    def find_service(self, project: str, run: str) -> Service | Awaitable[Service | None] | None:
        if run == "late":
            return self._later()
        return self.services.get((project, run))

    def next_change(self) -> asyncio.Future[None]:
        return self.change

    def wake(self, service_id: str) -> None:
        """`sleepy` gets the replica of the others; whoever waits is told."""
        self.woken.append(service_id)
        sleepy = self.services["main", "sleepy"]
        if self.waker is not None:
            self.services["main", "sleepy"] = replace(sleepy, replicas=self.waker)
            self.change.set_result(None)
            self.change = asyncio.get_running_loop().create_future()

    async def _later(self) -> Service | None:
        await asyncio.sleep(0)
        return self.services.get(("main", "s"))


class StaticAuth:
    def is_allowed(self, project: str, token: str, address: str) -> bool | Awaitable[bool]:
        return self._refuse() if token == "one-too-many" else token == TOKEN

    async def _refuse(self) -> bool:
        raise TooManyAttempts("Too many failed attempts", retry_after_seconds=7)


async def asgi_app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    text = b"asgi " + scope["path"].encode() + b" " + body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


@pytest.fixture
def ways() -> Ways | None:
    """To replicas on other machines; for test modules to override."""
    return None


@pytest.fixture
async def proxy(replica: Replica, ways: Ways | None) -> AsyncIterator[Proxy]:
    services = {
        ("main", name): Service(name, "main", name, auth, strip, (replica.address,))
        for name, auth, strip in (("s", True, True), ("open", False, True), ("whole", True, False))
    }
    services["main", "sleepy"] = Service("sleepy", "main", "sleepy", True, True, (), wakes=True)
    limits = (RateLimit(b"/", None, 0.02, 1), RateLimit(b"/free", b"x-key", 0.02, 0))
    services["main", "limited"] = Service(
        "limited", "main", "limited", True, True, (replica.address,), rate_limits=limits
    )
    services["main", "model"] = Service(
        "model", "main", "model", True, True, (replica.address,), is_cors_open=True
    )
    repo = StaticRepo(services)
    waking = Waking(repo, repo.wake, HoldLimits(seconds=0.5, requests=2))
    pool = Pool(timeout=0.8 if ways is None else 30, ways=ways)
    deps = ProxyDependencies(repo, StaticAuth(), pool=pool, waking=waking, max_body_bytes=MAX_BODY_BYTES)
    async with serving(asgi_app, deps) as port:
        yield Proxy(port, deps, services, repo)


@asynccontextmanager
async def serving(app: Any, deps: ProxyDependencies, *, keep_alive_seconds: int = 5) -> AsyncIterator[int]:
    """An HTTP server with the proxy under it; its port."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=make_http_protocol(deps),
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=keep_alive_seconds,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([sock]))
    while not server.started:  # noqa: ASYNC110 # uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield sock.getsockname()[1]
    finally:
        deps.pool.close()
        server.should_exit = True
        server.force_exit = True
        await task

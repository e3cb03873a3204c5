"""Clients and replicas that are slow, die or hang up half way: the right status or a cut connection, never a hang,
never half an answer that looks whole, and nothing stays open.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psutil
import pytest
from tests.integration.proxy.conftest import Handler, Proxy, Replica, asgi_app, serving
from tests.integration.proxy.test_forwarding import status_of

RESET = struct.pack("ii", 1, 0)
OK = b"HTTP/1.1 200 OK\r\n"
HALVES = {
    "counted": OK + b"Content-Length: 100\r\n\r\nhalf",
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "half a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n64\r\nhalf",
}
"""Answers that are not whole, however their connection ends."""


@pytest.fixture(autouse=True)
async def nothing_stays_open(proxy: Proxy) -> AsyncIterator[None]:
    """Neither at the proxy nor, as all run in this process, at its clients and replicas."""
    process = psutil.Process()
    before = process.num_fds()
    yield
    await until(lambda: not proxy.deps.pool.busy() and proxy.deps.stats.in_flight("s") == 0)
    proxy.deps.pool.close()
    await until(lambda: process.num_fds() <= before)
    assert proxy.deps.pool.open_addresses() == set()


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "it does not come to an end"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def answered_by(proxy: Proxy, handler: Handler) -> AsyncIterator[None]:
    """The service `s` is this replica, which closes when its handler returns."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    known = proxy.services["main", "s"]
    proxy.services["main", "s"] = dataclasses.replace(known, replicas=(address,))
    async with server:
        yield


def after_head(act: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await act(reader, writer)

    return handle


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends the connection as a process that crashes does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def read_to_end(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """What came, and whether the connection was reset."""
    answer = b""
    try:
        while data := await asyncio.wait_for(reader.read(65536), 20):
            answer += data
    except ConnectionResetError:
        return answer, True
    return answer, False


def looks_whole(answer: bytes, *, was_reset: bool) -> bool:
    """As a client sees it, which knows three ways for an answer to end."""
    head, end, body = answer.partition(b"\r\n\r\n")
    lower = head.lower()
    if b"content-length: " in lower:
        return len(body) == int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
    if b"transfer-encoding: chunked" in lower:
        return body.endswith(b"0\r\n\r\n")
    return bool(end) and not was_reset


# Clients


async def test_a_head_that_does_not_arrive_is_408(proxy: Proxy) -> None:
    deps = dataclasses.replace(proxy.deps, client_timeout=0.3)
    async with serving(asgi_app, deps, keep_alive_seconds=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /proxy/services/main/s/ HTTP/1.1\r\nHost: exa")
        answer, _ = await read_to_end(reader)
        writer.close()
    assert status_of(answer) == 408


async def test_a_body_that_stops_is_408(proxy: Proxy, replica: Replica) -> None:
    data = proxy.get("/", "Content-Length: 10", method="POST", close=False) + b"half"
    reader, writer = await proxy.connect()
    writer.write(data)
    assert status_of(await reader.readuntil(b"\r\n\r\n")) == 408
    writer.close()
    await asyncio.wait_for(replica.lost.wait(), 20)
    assert replica.bodies == []


async def test_a_body_that_comes_slowly_is_waited_for(proxy: Proxy, replica: Replica) -> None:
    """For longer in all than a silence may last."""
    reader, writer = await proxy.connect()
    writer.write(proxy.get("/", "Content-Length: 10", method="POST"))
    for byte in b"0123456789":
        await asyncio.sleep(proxy.deps.pool.timeout / 8)
        writer.write(bytes([byte]))
    assert (await read_to_end(reader))[0].endswith(b"body:0123456789")
    writer.close()


async def test_a_client_that_takes_nothing_is_let_go_of(proxy: Proxy, replica: Replica) -> None:
    """Its replica at once, its connection when it has taken nothing for a while."""
    deps = dataclasses.replace(proxy.deps, client_timeout=0.3)
    async with serving(asgi_app, deps, keep_alive_seconds=1) as port:
        with small_receiver(port) as client:
            client.sendall(proxy.get("/large", close=False))
            await asyncio.wait_for(replica.lost.wait(), 20)
            await until(lambda: connections_of(port) == 0)
            client.settimeout(20)  # what the kernel still holds arrives as there is room for it
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while data := client.recv(1 << 20):
                    answer += data
    assert not looks_whole(answer, was_reset=True)


def small_receiver(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    return client


def connections_of(port: int) -> int:
    """That this process holds as a server."""
    return sum(
        connection.laddr.port == port and connection.status != psutil.CONN_LISTEN
        for connection in psutil.Process().net_connections("tcp4")
        if connection.fd >= 0
    )


async def test_a_client_that_hangs_up_half_has_left(proxy: Proxy, replica: Replica) -> None:
    """As with nginx: whoever closes its sending side is not there any more."""
    reader, writer = await proxy.connect()
    writer.write(proxy.get("/silent", close=False))
    await until(lambda: len(replica.heads) == 1)
    writer.write_eof()
    assert await read_to_end(reader) == (b"", False)
    writer.close()
    await asyncio.wait_for(replica.lost.wait(), 20)


async def test_half_a_body_is_never_taken_for_a_whole(proxy: Proxy, replica: Replica) -> None:
    for framing, half in (("Content-Length: 10", b"half"), ("Transfer-Encoding: chunked", b"4\r\nhalf\r\n")):
        replica.lost.clear()
        reader, writer = await proxy.connect()
        writer.write(proxy.get("/", framing, method="POST", close=False) + half)
        await until(lambda: bool(replica.heads))
        writer.write_eof()
        assert await read_to_end(reader) == (b"", False)
        writer.close()
        await asyncio.wait_for(replica.lost.wait(), 20)
        replica.heads.clear()
    assert replica.bodies == []


# Replicas


async def test_a_head_that_comes_slowly_is_waited_for(proxy: Proxy) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in OK + b"Content-Length: 2\r\n\r\nok":
            writer.write(bytes([byte]))
            await asyncio.sleep(proxy.deps.pool.timeout / 40)

    async with answered_by(proxy, after_head(act)):
        assert (await proxy.exchange(proxy.get("/"))).endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("part", [b"", OK + b"Content-Le"])
async def test_a_head_that_stops_is_504(proxy: Proxy, part: bytes) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(part)
        await reader.read()

    async with answered_by(proxy, after_head(act)):
        assert status_of(await proxy.exchange(proxy.get("/"))) == 504


async def test_a_replica_that_does_not_take_the_body_is_504(proxy: Proxy) -> None:
    gone = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()

    async with answered_by(proxy, after_head(act)):
        reader, writer = await proxy.connect()
        body = b"x" * 20_000_000
        writer.write(proxy.get("/", f"Content-Length: {len(body)}", method="POST") + body)
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 20)
        gone.set()
        writer.transport.abort()
    assert status_of(answer) == 504
    assert b"did not take the request" in answer


@pytest.mark.parametrize("ending", ["stops", "hangs up half", "closes", "is reset"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("half", HALVES)
async def test_half_an_answer_never_looks_whole(proxy: Proxy, ending: str, version: str, half: str) -> None:
    is_seen = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HALVES[half])
        await writer.drain()
        await asyncio.wait_for(is_seen.wait(), 20)
        if ending == "is reset":
            reset(writer)
        elif ending == "hangs up half":
            writer.write_eof()
        if ending in ("stops", "hangs up half"):
            await reader.read()

    async with answered_by(proxy, after_head(act)):
        reader, writer = await proxy.connect()
        writer.write(proxy.get("/", version=version, close=False))
        start = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        is_seen.set()
        rest, was_reset = await read_to_end(reader)
        writer.close()
    assert status_of(start) == 200
    assert not looks_whole(start + rest, was_reset=was_reset)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_answer_until_the_end_of_its_connection_is_whole_only_when_that_is_closed(
    proxy: Proxy, version: str
) -> None:
    for ending, is_whole in (("closes", True), ("hangs up half", True), ("is reset", False)):
        is_seen = asyncio.Event()

        async def act(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            ending: str = ending,
            is_seen: asyncio.Event = is_seen,
        ) -> None:
            writer.write(OK + b"\r\nall of it")
            await writer.drain()
            await asyncio.wait_for(is_seen.wait(), 20)
            if ending == "is reset":
                reset(writer)
            elif ending == "hangs up half":
                writer.write_eof()
                await reader.read()

        async with answered_by(proxy, after_head(act)):
            reader, writer = await proxy.connect()
            writer.write(proxy.get("/", version=version, close=False))
            start = await asyncio.wait_for(reader.readuntil(b"all of it"), 20)
            is_seen.set()
            if version == "1.1" and is_whole:
                assert (await reader.readuntil(b"0\r\n\r\n")) == b"\r\n0\r\n\r\n"
            else:
                rest, was_reset = await read_to_end(reader)
                assert looks_whole(start + rest, was_reset=was_reset) is is_whole, ending
            writer.close()


@pytest.mark.parametrize("ending", ["closes", "hangs up half", "is reset"])
@pytest.mark.parametrize("taken", [0, 1000])
async def test_a_replica_that_dies_while_it_takes_the_body_is_502(proxy: Proxy, ending: str, taken: int) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(taken)
        if ending == "is reset":
            reset(writer)
        elif ending == "hangs up half":
            writer.write_eof()
            await reader.read()

    async with answered_by(proxy, after_head(act)):
        reader, writer = await proxy.connect()
        writer.write(proxy.get("/", "Content-Length: 100000", method="POST") + b"x" * 50_000)
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 20)
        writer.close()
    assert status_of(answer) == 502


@pytest.mark.parametrize("side", ["client", "replica"])
async def test_a_tunnel_ends_with_either_of_its_ends(proxy: Proxy, side: str) -> None:
    is_over = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        if side == "replica":
            writer.write_eof()
        await reader.read()
        is_over.set()

    async with answered_by(proxy, after_head(act)):
        reader, writer = await proxy.connect()
        writer.write(proxy.get("/", "Connection: Upgrade", "Upgrade: websocket", close=False))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\nhi"), 20)
        if side == "client":
            writer.write_eof()
        assert await read_to_end(reader) == (b"", False)
        await asyncio.wait_for(is_over.wait(), 20)
        writer.close()


async def test_leavers_at_every_point_leave_nothing_behind(proxy: Proxy, replica: Replica) -> None:
    """Anywhere within the request, and anywhere within the answer."""
    data = proxy.get("/", "Content-Length: 4", method="POST", close=False) + b"abcd"
    for size in range(0, len(data), 7):
        reader, writer = await proxy.connect()
        writer.write(data[:size])
        await writer.drain()
        reset(writer)
    sizes = range(1, 64, 7)
    for size in sizes:
        reader, writer = await proxy.connect()
        writer.write(data)
        await reader.readexactly(size)
        reset(writer)
    assert replica.bodies.count(b"abcd") == len(sizes)

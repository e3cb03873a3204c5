"""Tunnels by real `ssh` processes to a real `sshd`, and requests through them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.fixtures.plain_sshd import Sshd, make_key
from tests.fixtures.ports import take_free_port
from tests.integration.proxy.conftest import Proxy, Replica

from dstack.proxy.ssh_process import Destination, TunnelError
from dstack.proxy.tunnels import Tunnels

PIDFD_GETFD = 438
"""The number of that system call on all machines."""


@pytest.fixture
def destination(sshd: Sshd) -> Destination:
    key = " ".join(sshd.host_key.split()[:2])
    return Destination("127.0.0.1", sshd.user, sshd.port, (sshd.identity.read_text(),), key)


@pytest.fixture
async def tunnels(tmp_path: Path) -> AsyncIterator[Tunnels]:
    tunnels = Tunnels(tmp_path / "keys")
    yield tunnels
    await tunnels.stop()


class OnePlace:
    """`Ways` by which `ssh:<port>` is that port as seen from the one SSH server."""

    def __init__(self, tunnels: Tunnels, destination: Destination) -> None:
        self._tunnels = tunnels
        self._destination = destination
        self.opened = 0

    async def open(self, address: str) -> str:
        self.opened += 1
        return await self._tunnels.open(self._destination, f"localhost:{address.removeprefix('ssh:')}")

    def distrust(self, address: str, path: str) -> None:
        self._tunnels.distrust(self._destination, path)


@pytest.fixture
def ways(tunnels: Tunnels, destination: Destination) -> OnePlace:
    return OnePlace(tunnels, destination)


def ssh_processes() -> list[psutil.Process]:
    """Those that forward; not the short ones that give orders."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "ssh" and "-T" in child.cmdline():
                found.append(child)
    return found


def port_of(replica: Replica) -> int:
    return int(replica.address.rpartition(":")[2])


async def ask(path: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    answer = await reader.readuntil(b"body:")
    writer.close()
    return answer


async def test_tunnels_to_one_server_share_a_connection(
    tunnels: Tunnels, destination: Destination, replica: Replica, tmp_path: Path
) -> None:
    target = f"localhost:{port_of(replica)}"
    first, again, other = await asyncio.gather(
        tunnels.open(destination, target),
        tunnels.open(destination, target),
        tunnels.open(destination, f"127.0.0.1:{port_of(replica)}"),
    )
    assert first == again != other
    assert b"200 OK" in await ask(first)
    assert b"200 OK" in await ask(other)
    (process,) = ssh_processes()
    assert list((tmp_path / "keys").iterdir()) == []
    assert Path(first).parent.stat().st_mode & 0o77 == 0
    await tunnels.close(destination, target)
    assert not Path(first).exists()
    assert b"200 OK" in await ask(other)
    await tunnels.close(destination, f"127.0.0.1:{port_of(replica)}")
    assert not process.is_running()


async def test_b16_a_server_with_another_key_is_not_talked_to(
    tunnels: Tunnels, destination: Destination, tmp_path: Path
) -> None:
    other = " ".join(make_key(tmp_path / "other").split()[:2])
    with pytest.raises(TunnelError, match="Host key verification failed"):
        await tunnels.open(replace(destination, host_key=other), "localhost:1")
    with pytest.raises(TunnelError, match=r"No host key of .+ is on record"):
        await tunnels.open(replace(destination, host_key=None), "localhost:1")
    assert list((tmp_path / "keys").iterdir()) == []


async def test_what_is_wrong_is_told_and_at_once_the_next_time(tunnels: Tunnels, destination: Destination) -> None:
    nowhere = replace(destination, port=take_free_port())
    for _ in range(2):
        with pytest.raises(TunnelError, match="Connection refused"):
            await tunnels.open(nowhere, "localhost:1")
    assert tunnels.is_failing(nowhere)
    with pytest.raises(TunnelError, match="Permission denied"):
        await tunnels.open(replace(destination, private_keys=()), "localhost:1")


async def test_behind_a_jump_host(tunnels: Tunnels, destination: Destination, replica: Replica) -> None:
    inner = replace(destination, jump=destination)
    target = f"localhost:{port_of(replica)}"
    path = await tunnels.open(inner, target)
    assert b"200 OK" in await ask(path)
    assert len(ssh_processes()) == 2, "one to the jump host, one through it"
    await tunnels.close(inner, target)
    assert ssh_processes() == []
    wrong = replace(destination, host_key=None)
    with pytest.raises(TunnelError, match="No host key"):
        await tunnels.open(replace(destination, jump=wrong), target)


async def test_a_process_that_is_killed_is_replaced(
    tunnels: Tunnels, destination: Destination, replica: Replica
) -> None:
    target = f"localhost:{port_of(replica)}"
    path = await tunnels.open(destination, target)
    ssh_processes()[0].kill()
    tunnels.distrust(destination, path)
    newer = await tunnels.open(destination, target)
    assert newer != path
    assert b"200 OK" in await ask(newer)
    assert not Path(path).exists()


async def test_requests_go_on_when_the_process_is_killed(proxy: Proxy, replica: Replica, ways: OnePlace) -> None:
    through = replace(proxy.services["main", "s"], replicas=(f"ssh:{port_of(replica)}",))
    proxy.services["main", "s"] = through
    answers = [await proxy.exchange(proxy.get("/"))]
    assert (replica.connections, ways.opened) == (1, 1)
    answers.append(await proxy.exchange(proxy.get("/")))
    assert (replica.connections, ways.opened) == (1, 1), "the connection is kept"
    for _ in range(3):
        ssh_processes()[0].kill()
        answers += await asyncio.gather(*(proxy.exchange(proxy.get("/")) for _ in range(20)))
    assert {answer[:15] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert proxy.deps.pool.open_addresses() == {f"ssh:{port_of(replica)}"}


@pytest.mark.parametrize(
    "body", ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
async def test_a_replica_that_refuses_is_skipped(proxy: Proxy, replica: Replica, body: str) -> None:
    """Though the tunnel takes the connection, nothing has been sent."""
    through = (f"ssh:{take_free_port()}", f"ssh:{port_of(replica)}")
    proxy.services["main", "s"] = replace(proxy.services["main", "s"], replicas=through)
    request = proxy.get("/", method="POST").removesuffix(b"\r\n") + body.encode()
    for number in range(1, 11):
        assert (await proxy.exchange(request)).endswith(b"body:hello")
        assert replica.bodies == [b"hello"] * number


async def test_a_lone_replica_that_refuses_is_told(proxy: Proxy) -> None:
    through = (f"ssh:{take_free_port()}",)
    proxy.services["main", "s"] = replace(proxy.services["main", "s"], replicas=through)
    assert (await proxy.exchange(proxy.get("/"))).startswith(b"HTTP/1.1 502 ")


async def test_a_request_that_was_taken_is_not_repeated(proxy: Proxy, replica: Replica) -> None:
    through = (f"ssh:{port_of(replica)}",)
    proxy.services["main", "s"] = replace(proxy.services["main", "s"], replicas=through)
    request = proxy.get("/die-before", "Content-Length: 2", method="POST") + b"hi"
    assert (await proxy.exchange(request)).startswith(b"HTTP/1.1 502 ")
    assert replica.bodies == [b"hi"]


async def test_neither_end_of_the_carrier_gathers_small_pieces(
    tunnels: Tunnels, destination: Destination, sshd: Sshd
) -> None:
    """Else an answer in several pieces waits for acknowledgements that are delayed, 40 ms each (ADR 0008)."""
    await tunnels.open(destination, f"localhost:{take_free_port()}")
    (client,) = ssh_processes()
    servers = psutil.Process(sshd.process.pid).children(recursive=True)
    assert [sends_at_once(one, sshd.port) for one in (client, *servers) if is_connected(one, sshd.port)] != []
    assert all(sends_at_once(one, sshd.port) for one in (client, *servers) if is_connected(one, sshd.port))


def is_connected(process: psutil.Process, port: int) -> bool:
    return bool(connections(process, port))


def connections(process: psutil.Process, port: int) -> list[int]:
    """Descriptors of the process's connections to or from that port."""
    return [
        one.fd
        for one in process.net_connections("tcp")
        if one.raddr and port in (one.raddr.port, one.laddr.port) and one.fd >= 0
    ]


def sends_at_once(process: psutil.Process, port: int) -> bool:
    """Whether TCP_NODELAY is set, asked of the other process's own socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(process.pid)
    try:
        descriptor = libc.syscall(PIDFD_GETFD, handle, connections(process, port)[0], 0)
    finally:
        os.close(handle)
    if descriptor < 0:
        pytest.skip(f"sockets of other processes cannot be looked at: {os.strerror(ctypes.get_errno())}")
    with socket.socket(fileno=descriptor) as ours:
        return bool(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

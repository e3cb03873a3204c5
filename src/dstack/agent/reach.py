"""Connections to what listens beside a task."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import threading
from typing import Callable, Iterable, List, Tuple

from dstack.agent.sessions import SessionRefused

LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
CONNECT_SECONDS = 10.0
CLONE_NEWNET = 0x40000000
_NOBODY = (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_libc = ctypes.CDLL(None, use_errno=True)

MakeSocket = Callable[[int], socket.socket]


def make_socket(family: int) -> socket.socket:
    """A TCP socket in this process's own network."""
    return socket.socket(family, socket.SOCK_STREAM)


def sockets_of(pid: int) -> MakeSocket:
    """Makes TCP sockets in the network of a process. Needs root; raises OSError."""

    def make(family: int) -> socket.socket:
        done: List[socket.socket] = []
        failed: List[OSError] = []

        def run() -> None:
            try:
                _enter_network(pid)
                done.append(make_socket(family))
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=run)  # one of its own, which ends at once: its network has changed
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return done[0]

    return make


def _enter_network(pid: int) -> None:
    """Moves this thread into the network of a process."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(namespace, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(namespace)


def checked_port(port: object) -> int:
    """Raises SessionRefused."""
    if not isinstance(port, int) or not 0 < port < 65536:
        raise SessionRefused(400, f"`port` has to be a number from 1 to 65535, not {port!r}")
    return port


async def connect_port(
    port: int, make: MakeSocket = make_socket, addresses: Iterable[Tuple[int, str]] = LOOPBACKS
) -> socket.socket:
    """Connects to the first address where somebody listens. Raises SessionRefused."""
    tried: List[str] = []
    for family, address in addresses:
        try:
            connecting = make(family)
        except OSError as error:
            if error.errno in _NOBODY:
                continue
            raise
        try:
            await _connect(connecting, (address, port))
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connecting
        except asyncio.TimeoutError:
            connecting.close()
            tried.append(f"{address}: no answer")
        except OSError as error:
            connecting.close()
            tried.append(f"{address}: {os.strerror(error.errno or 0)}")
        except asyncio.CancelledError:
            connecting.close()
            raise
    raise SessionRefused(502, f"nothing listens on port {port} of the task ({'; '.join(tried)})")


async def _connect(connecting: socket.socket, address: Tuple[str, int]) -> None:
    connecting.setblocking(False)
    await asyncio.wait_for(asyncio.get_running_loop().sock_connect(connecting, address), CONNECT_SECONDS)

"""One SSH connection, with the host's key verified: pinned at first contact, held to ever after (better B16)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dstack.core.errors import HostKeyChanged, LoginRefused, Unreachable
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

CONNECT_SECONDS = 3.0
"""How long a host may take to accept a connection, unless a setting says otherwise."""
LOGIN_SECONDS = 20.0
"""How long it may take to agree on keys and to let us in."""
KEEPALIVE_SECONDS = 20.0
"""Of silence; longer than the agent's own pings are apart, so that a host that is well is never asked."""
KEEPALIVE_MISSES = 1
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")


Pin = Callable[[SSHTarget, str], Awaitable[None]]
"""Puts on record which key a host has shown that none was known of, before anything is sent through it."""


async def connect(
    target: SSHTarget, pin: Pin, connect_seconds: float = CONNECT_SECONDS
) -> asyncssh.SSHClientConnection:
    """Logs in, through the jump host if there is one. Raises Unreachable, LoginRefused or HostKeyChanged."""
    tunnel = None if target.jump is None else await connect(target.jump, pin, connect_seconds)
    connection = None
    try:
        connection = await _log_in(target, tunnel, connect_seconds)
        if target.host_key is None:
            await pin(target, host_key_of(connection))
    except BaseException:
        for one in (connection, tunnel):
            if one is not None:
                close(one)
        raise
    if tunnel is not None:
        connection.set_extra_info(dstack_tunnel=tunnel)
    return connection


async def _log_in(target: SSHTarget, tunnel: Any, connect_seconds: float) -> asyncssh.SSHClientConnection:
    import asyncssh  # noqa: PLC0415 - half of a server's start; many have no SSH hosts

    keys, trusted = _keys(target), _trusted(target)
    async with translated(target):
        through: dict[str, Any] = {"tunnel": tunnel}
        if tunnel is None:
            through = {"sock": await asyncio.wait_for(_dial(target), connect_seconds)}
        return await asyncssh.connect(
            target.hostname,
            port=target.port,
            username=target.username,
            client_keys=keys,
            known_hosts=trusted,
            config=None,
            agent_path=None,
            preferred_auth="publickey",
            encryption_algs=CIPHERS,
            compression_algs=None,
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVE_MISSES,
            connect_timeout=connect_seconds + LOGIN_SECONDS,
            login_timeout=LOGIN_SECONDS,
            **through,
        )


async def _dial(target: SSHTarget) -> socket.socket:
    """A TCP connection to the first address of the host that takes one. Raises OSError."""
    loop = asyncio.get_running_loop()
    failure = OSError("its name has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        target.hostname, target.port, type=socket.SOCK_STREAM
    ):
        dialled = socket.socket(family, kind, protocol)
        dialled.setblocking(False)
        try:
            await loop.sock_connect(dialled, address)
            return dialled
        except OSError as error:
            dialled.close()
            failure = error
        except BaseException:
            dialled.close()
            raise
    raise failure


def close(connection: asyncssh.SSHClientConnection) -> None:
    """Ends the connection and that to its jump host."""
    connection.close()
    tunnel = connection.get_extra_info("dstack_tunnel")
    if tunnel is not None:
        close(tunnel)


def host_key_of(connection: asyncssh.SSHClientConnection) -> str:
    """The key that the host has shown, as it is pinned."""
    key = connection.get_server_host_key()
    assert key is not None
    return key.export_public_key("openssh").decode().strip()


def _keys(target: SSHTarget) -> list[Any]:
    import asyncssh  # noqa: PLC0415 - see above

    found = []
    for text in target.private_keys:
        try:
            found.append(asyncssh.import_private_key(text))
        except asyncssh.KeyEncryptionError as error:
            raise LoginRefused(
                f"The private key for {target} has a passphrase; give one without", detail=str(error)
            ) from error
        except asyncssh.KeyImportError as error:
            raise LoginRefused(f"The private key for {target} cannot be read: {error}") from error
    return found


def _trusted(target: SSHTarget) -> Any:
    """What asyncssh verifies the host's key with; None: at first contact any will do."""
    import asyncssh  # noqa: PLC0415 - see above

    if target.host_key is None:
        return None
    try:
        return [asyncssh.import_public_key(target.host_key)], [], []
    except asyncssh.KeyImportError as error:
        raise HostKeyChanged(f"The known host key of {target} is not a public key: {error}") from error


@asynccontextmanager
async def translated(target: SSHTarget) -> AsyncIterator[None]:
    """Our errors for those of the network and of SSH."""
    import asyncssh  # noqa: PLC0415 - see above

    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        raise HostKeyChanged(
            f"{target} shows another host key than the one on record. If that host was reinstalled, delete the "
            "fleet's instances on it or behind it and apply again; if not, somebody may be in between",
            detail=str(error),
        ) from error
    except asyncssh.PermissionDenied as error:
        raise LoginRefused(
            f"{target} refused the login: check `user`, and that the key is in its authorized_keys",
            detail=str(error),
        ) from error
    except asyncio.TimeoutError as error:
        raise Unreachable(f"{target} does not answer", detail="timed out") from error
    except asyncssh.Error as error:
        raise Unreachable(f"The connection to {target} broke: {error.reason}", detail=str(error)) from error
    except OSError as error:
        raise Unreachable(f"{target} cannot be reached: {error.strerror or error}", detail=str(error)) from error

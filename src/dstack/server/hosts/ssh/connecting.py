"""One SSH connection, with the host's key verified: pinned at first contact, held to ever after (better B16)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dstack.core.errors import HostKeyChanged, LoginRefused, Unreachable
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS = 10.0
KEEPALIVE_MISSES = 3
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")


async def connect(target: SSHTarget) -> asyncssh.SSHClientConnection:
    """Logs in, through the jump host if there is one. Raises Unreachable, LoginRefused or HostKeyChanged."""
    tunnel = None if target.jump is None else await connect(target.jump)
    try:
        connection = await _log_in(target, tunnel)
    except BaseException:
        if tunnel is not None:
            tunnel.close()
        raise
    if tunnel is not None:
        connection.set_extra_info(dstack_tunnel=tunnel)
    return connection


async def _log_in(target: SSHTarget, tunnel: Any) -> asyncssh.SSHClientConnection:
    import asyncssh  # noqa: PLC0415 - half of a server's start; many have no SSH hosts

    async with translated(target):
        return await asyncssh.connect(
            target.hostname,
            port=target.port,
            username=target.username,
            tunnel=tunnel,
            client_keys=_keys(target),
            known_hosts=_trusted(target),
            config=None,
            agent_path=None,
            preferred_auth="publickey",
            encryption_algs=CIPHERS,
            compression_algs=None,
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVE_MISSES,
            connect_timeout=CONNECT_SECONDS,
            login_timeout=CONNECT_SECONDS,
        )


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
            f"{target} shows another host key than the one on record. If the host was reinstalled, delete its "
            "instance from the fleet and apply again; if not, somebody may be in between",
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

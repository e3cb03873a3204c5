"""The door's port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from dstack.core.errors import DstackError
from dstack.server.settings import Settings, SshPort


class DoorError(DstackError):
    """The port that was asked for cannot be used; the text is for the person who starts the server."""


class Bound(NamedTuple):
    """`listener` and `port` are None when the door is off or its port is taken. `message` tells how it is."""

    listener: socket.socket | None
    port: SshPort | None
    message: str | None


def proxy_warning(settings: Settings) -> str | None:
    """What to tell when a separate SSH proxy is the only way into jobs, and there is none."""
    if not settings.sshproxy_enforced or settings.sshproxy_address is not None:
        return None
    return (
        "Warning: DSTACK_SERVER_SSHPROXY_ENFORCED is ignored: there is no separate SSH proxy without "
        "DSTACK_SERVER_SSHPROXY_ADDRESS and DSTACK_SSHPROXY_API_TOKEN"
    )


@contextmanager
def bind(settings: Settings) -> Iterator[Bound]:
    """On the host that the HTTP server listens on. Raises DoorError for a port that was asked for."""
    bound = _bind(settings)
    try:
        yield bound
    finally:
        if bound.listener is not None:
            bound.listener.close()


def _bind(settings: Settings) -> Bound:
    wanted = settings.ssh_port
    if wanted is None:
        return Bound(None, None, None)
    try:
        listener = _listen(settings.host, wanted.number)
    except OSError as error:
        reason = f"Cannot listen for SSH on {settings.host}:{wanted.number}: {error.strerror or error}"
        if wanted.is_default and error.errno == errno.EADDRINUSE:
            return Bound(None, None, f"{reason}; see DSTACK_SERVER_SSH_PORT. SSH goes over the server's URL only")
        raise DoorError(
            f"{reason}; stop what uses the port, or set DSTACK_SERVER_SSH_PORT to another one or to 'off'"
        ) from None
    port = listener.getsockname()[1]
    return Bound(listener, SshPort(port), f"SSH into jobs: port {port}")


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener

"""Speaks SSH: at the door's port, and on connections that come by WebSocket."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import asyncssh

from dstack.server.hosts.connections import Agents
from dstack.server.operations.context import Context
from dstack.server.ssh_door.entry import Carried
from dstack.server.ssh_door.guest import Guest
from dstack.server.ssh_door.visits import Visits
from dstack.server.ssh_keys import KeyPair

LOGIN_SECONDS = 30.0
KEEPALIVE_SECONDS = 30.0
KEEPALIVES_UNANSWERED = 3
WINDOW_BYTES = 4 * 1024 * 1024
MAX_PACKET_BYTES = 64 * 1024
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes128-ctr")
"""The client's order decides, and OpenSSH's begins with ChaCha20, which takes several times as long here."""

logger = logging.getLogger(__name__)


class Reception:
    """Has the host key and the settings that all connections share."""

    def __init__(self, ctx: Context, agents: Agents, visits: Visits, host_key: KeyPair) -> None:
        self._ctx = ctx
        self._agents = agents
        self._visits = visits
        self._within: set[asyncio.Task[None]] = set()
        key = asyncssh.import_private_key(host_key.private)
        logger.info("SSH host key %s", key.get_fingerprint())
        self._options = asyncssh.SSHServerConnectionOptions(
            server_factory=lambda: self._guest(None),
            server_host_keys=[key],
            server_version="dstack",
            encryption_algs=CIPHERS,
            compression_algs=["none"],
            login_timeout=LOGIN_SECONDS,
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVES_UNANSWERED,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            agent_forwarding=False,
            x11_forwarding=False,
            line_editor=False,
            encoding=None,
            window=WINDOW_BYTES,
            max_pktsize=MAX_PACKET_BYTES,
        )

    async def listen(self, listener: socket.socket) -> asyncssh.SSHAcceptor:
        """Until the acceptor is closed."""
        return await asyncssh.listen(sock=listener, options=self._options)

    async def take(self, connection: socket.socket, carried: Carried) -> None:
        """Speaks SSH on `connection`; returns when the guest was let in or has gone."""
        await self._run(connection, lambda: self._guest(carried))

    def _admit_within(self, connection: socket.socket, outer: Guest) -> None:
        """Speaks SSH on `connection` with somebody who is in a job already."""
        connection.setblocking(False)
        task = asyncio.ensure_future(self._run(connection, lambda: self._guest(None, outer)))
        self._within.add(task)
        task.add_done_callback(self._within.discard)

    async def _run(self, connection: socket.socket, guest: Callable[[], Guest]) -> None:
        options = asyncssh.SSHServerConnectionOptions(options=self._options, server_factory=guest)
        try:
            await asyncssh.run_server(connection, options=options)
        except (OSError, asyncssh.Error, asyncio.TimeoutError, TimeoutError) as error:
            logger.debug("Somebody who came by WebSocket, or through the door, was not let in: %r", error)

    def _guest(self, carried: Carried | None, outer: Guest | None = None) -> Guest:
        return Guest(self._ctx, self._agents, self._visits, carried, outer=outer, admit_within=self._admit_within)

"""One SSH connection: who comes, whether the job may be entered, and what its channels lead to."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

import asyncssh
from asyncssh.constants import (
    DISC_BY_APPLICATION,
    DISC_NO_MORE_AUTH_METHODS_AVAILABLE,
    OPEN_ADMINISTRATIVELY_PROHIBITED,
    OPEN_CONNECT_FAILED,
)

from dstack.agent.protocol import ConnectRequest
from dstack.core.errors import DstackError, Unreachable
from dstack.core.jobs import JobStatus
from dstack.core.ssh import JOB_SSH_PORT
from dstack.server import clock
from dstack.server.db.queries.ssh_door import DoorJob
from dstack.server.hosts.agent_client import AgentClient
from dstack.server.hosts.connections import Agents, parse_address
from dstack.server.operations.context import Context
from dstack.server.ssh_door import entry, live_logs
from dstack.server.ssh_door.entry import By, Carried, Entrance
from dstack.server.ssh_door.forwards import Forward, forward_to, open_forward
from dstack.server.ssh_door.sessions import JobSession
from dstack.server.ssh_door.visits import Visits

MAX_REFUSED_KEYS = 20
"""How many keys that do not fit one connection may show."""
JOB_HOSTNAMES = frozenset(("", "localhost", "*"))

logger = logging.getLogger(__name__)


class NotNow(DstackError):
    """The job cannot be entered at the moment; the text says why."""


class Guest(asyncssh.SSHServer):
    """`carried` is None for a connection to the door's port.

    `outer`: who has come in already, and goes on to the SSH server of the job; `admit_within` lets one do that.
    """

    def __init__(
        self,
        ctx: Context,
        agents: Agents,
        visits: Visits,
        carried: Carried | None,
        *,
        outer: Guest | None = None,
        admit_within: Callable[[socket.socket, Guest], None],
    ) -> None:
        self._ctx = ctx
        self._agents = agents
        self._visits = visits
        self._outer = outer
        self._admit_within = admit_within
        self._user: str | None = None
        self._refused: set[str] = set()
        self._inside = ExitStack()
        self.carried = carried
        self.address: str = carried.address if carried is not None else "" if outer is None else outer.address
        self.job: DoorJob | None = None
        self.entrance: Entrance | None = None
        self._live_logs = 0
        self.logs_are_read = asyncio.Event()
        """Set while no live logs are being read."""
        self.logs_are_read.set()

    # Connection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        peer = conn.get_extra_info("peername")
        self.address = self.address or (str(peer[0]) if isinstance(peer, tuple) else "")
        self._visits.came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inside.close()
        self._visits.left(self)
        if self._refused and self.entrance is None:
            self._ctx.failed_attempts.failed(self.address)

    def disconnect(self, reason: str) -> None:
        """Ends it; `reason` is for the user."""
        self._connection.disconnect(DISC_BY_APPLICATION, reason)

    # Authentication

    async def begin_auth(self, username: str) -> bool:
        if self._outer is not None:
            self._come_from(self._outer, username)
            return False
        self.job, self.entrance, self._user = None, None, None
        wanted = entry.parse_user_name(username)
        if wanted is None:
            self._connection.send_auth_banner("dstack: expected the id of a job, or <id>_<user>, as user name\r\n")
            return True
        try:
            job = await entry.find_job(self._ctx.database, wanted.job_id)
            if job is not None:
                self.job, self._user = job, wanted.user
            if self.carried is None:
                return True
            if job is not None:
                self.entrance = await entry.enter_with_token(self._ctx.database, job, self.carried.caller)
        except DstackError as error:
            self._give_up(error)
        if self.entrance is None:
            self._connection.send_auth_banner("dstack: the token is not for this job, or there is no such job\r\n")
        return self.entrance is None

    def _come_from(self, outer: Guest, username: str) -> None:
        assert outer.job is not None
        self.job, self.entrance = outer.job, outer.entrance
        self._user = None if username == outer.job.username else username

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Called for an offered key and again, with the same answer, for its signature."""
        text = " ".join(key.export_public_key().decode().split()[:2])
        fingerprint = key.get_fingerprint()
        if self.job is None or fingerprint in self._refused:
            self._refuse(fingerprint)
            return False
        try:
            self.entrance = await entry.enter_with_key(self._ctx.database, self.job, text, fingerprint)
        except DstackError as error:
            self._give_up(error)
            return False
        if self.entrance is None:
            self._refuse(fingerprint)
        elif self._ctx.settings.is_sshproxy_only and self.entrance.by is not By.PROJECT_KEY:
            self.disconnect(entry.proxy_only(self._ctx.settings))
            self.entrance = None
        return self.entrance is not None

    def _refuse(self, fingerprint: str) -> None:
        self._refused.add(fingerprint)
        wait = self._ctx.failed_attempts.wait_seconds(self.address)
        if wait is not None or len(self._refused) >= MAX_REFUSED_KEYS:
            reason = "Too many keys that do not fit" if wait is None else "Too many failed attempts; wait a while"
            self._connection.disconnect(DISC_NO_MORE_AUTH_METHODS_AVAILABLE, reason)

    def _give_up(self, error: DstackError) -> None:
        logger.error("The SSH door cannot tell who may enter: %s", error.detail)
        self.disconnect(str(error))

    def auth_completed(self) -> None:
        assert self.job is not None
        assert self.entrance is not None
        self._inside.enter_context(self._ctx.activity.connected(self.job.id))
        if self.carried is not None and self.entrance.by is By.TOKEN:
            self._leave_at(self.carried.caller.expires_at)
        self._visits.entered(self)
        if self._outer is not None:
            return
        who = "a proxy" if self.entrance.user is None else self.entrance.user.name
        logger.info("job=%s: %s came in over SSH from %s", self.job.id, who, self.address)

    def _leave_at(self, moment: datetime | None) -> None:
        if moment is not None:
            seconds = (moment - clock.now()).total_seconds()
            leaving = asyncio.get_running_loop().call_later(seconds, self.disconnect, "The token has expired")
            self._inside.callback(leaving.cancel)

    # Channels

    def session_requested(self) -> JobSession:
        assert self.job is not None
        return JobSession(str(self.job.id), self._user, self._find_agent)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        assert self.job is not None
        if not self._is_of_job(dest_host):
            raise asyncssh.ChannelOpenError(
                OPEN_ADMINISTRATIVELY_PROHIBITED, f"only ports of the job are reached here, not {dest_host}"
            )
        if dest_port == live_logs.PORT:
            return self._serve_live_logs
        if dest_port == JOB_SSH_PORT and self._outer is None:
            return self._serve_ssh()
        return self._forward(ConnectRequest(port=dest_port))

    def unix_connection_requested(self, dest_path: str) -> Any:
        return self._forward(ConnectRequest(socket=dest_path))

    async def _forward(self, request: ConnectRequest) -> Forward:
        assert self.job is not None
        try:
            agent = await self._find_agent()
        except DstackError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, str(error)) from error
        return await open_forward(agent, str(self.job.id), request)

    async def _serve_ssh(self) -> Forward:
        ours, theirs = socket.socketpair()
        self._admit_within(theirs, self)
        return await forward_to(ours)

    def _serve_live_logs(
        self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]
    ) -> Coroutine[Any, Any, None]:
        assert self.job is not None
        return self._counted(live_logs.serve(self._ctx, self.job, reader, writer))

    async def _counted(self, serving: Coroutine[Any, Any, None]) -> None:
        with (
            self._reading_logs(),
            contextlib.nullcontext() if self._outer is None else self._outer._reading_logs(),
        ):
            await serving

    @contextmanager
    def _reading_logs(self) -> Iterator[None]:
        self._live_logs += 1
        self.logs_are_read.clear()
        try:
            yield
        finally:
            self._live_logs -= 1
            if not self._live_logs:
                self.logs_are_read.set()

    def _is_of_job(self, host: str) -> bool:
        assert self.job is not None
        job = self.job
        if host.lower() in JOB_HOSTNAMES or host in (str(job.id), job.run_name, job.job_name, job.hostname):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified

    async def _find_agent(self) -> AgentClient:
        """Of the host on which the job runs now. Raises NotNow, Unreachable."""
        assert self.job is not None
        job = await entry.find_job(self._ctx.database, self.job.id)
        if job is None:
            raise NotNow("the job is gone: its run was deleted")
        status = JobStatus(job.status)
        if status.is_finished():
            raise NotNow(f"the job does not run any more: it is {status.value}")
        if status is not JobStatus.RUNNING or job.address is None:
            raise NotNow(f"the job does not run yet: it is {status.value}")
        try:
            return self._agents.client(parse_address(job.address))
        except Unreachable as error:
            raise NotNow(str(error)) from error

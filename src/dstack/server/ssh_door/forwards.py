"""A channel that is forwarded into a job's network: bytes both ways, each direction ended on its own."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import asyncssh

from dstack.agent.protocol import ConnectRequest
from dstack.core.errors import DstackError
from dstack.server.hosts.agent_client import AgentClient, AgentRefused

NOT_RUNNING = 409
Channel = asyncssh.SSHTCPChannel[bytes] | asyncssh.SSHUNIXChannel[bytes]


class Forward(asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """The client's side."""

    def __init__(self) -> None:
        self.job = JobSide(self)
        self.channel: Channel | None = None

    def connection_made(self, chan: Channel) -> None:
        self.channel = chan

    def session_started(self) -> None:
        self.job.start()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self.job.transport.write(data)

    def eof_received(self) -> bool:
        self.job.end()
        return True

    def pause_writing(self) -> None:
        self.job.transport.pause_reading()

    def resume_writing(self) -> None:
        self.job.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.channel = None
        if exc is None:
            self.job.transport.close()
        else:
            self.job.transport.abort()


class JobSide(asyncio.Protocol):
    """The job's side. What comes before the channel is open is kept."""

    transport: asyncio.Transport

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._early = b""
        self._has_ended = False
        self._is_lost = False
        self._client_has_ended = False

    def start(self) -> None:
        """The channel is open."""
        assert self._forward.channel is not None
        if self._early:
            self._forward.channel.write(self._early)
            self._early = b""
        if self._is_lost:
            self._forward.channel.close()
        else:
            self.transport.resume_reading()

    def end(self) -> None:
        """The client sends no more."""
        self._client_has_ended = True
        if not self.transport.is_closing():
            self.transport.write_eof()
        self._close_when_done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own

    def data_received(self, data: bytes) -> None:
        channel = self._forward.channel
        if channel is None:
            self._early += data
        elif not channel.is_closing():
            channel.write(data)

    def eof_received(self) -> bool:
        self._has_ended = True
        if self._forward.channel is not None:
            self._forward.channel.write_eof()
        self._close_when_done()
        return True

    def _close_when_done(self) -> None:
        if self._has_ended and self._client_has_ended:
            self.transport.close()

    def pause_writing(self) -> None:
        if self._forward.channel is not None:
            self._forward.channel.pause_reading()

    def resume_writing(self) -> None:
        if self._forward.channel is not None:
            self._forward.channel.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        if self._forward.channel is not None:
            self._forward.channel.close()


async def open_forward(agent: AgentClient, job_id: str, request: ConnectRequest) -> Forward:
    """Connected to the job. Raises asyncssh.ChannelOpenError, whose text `ssh` shows."""
    forward = Forward()
    try:
        transport = await agent.connect_protocol(job_id, request, forward.job)
    except DstackError as error:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, _reason(error)) from error
    transport.pause_reading()  # until the channel is open
    return forward


async def forward_to(connection: socket.socket) -> Forward:
    """Connected to what is at the other end of a pair of sockets."""
    connection.setblocking(False)
    forward = Forward()
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: forward.job, sock=connection)
    transport.pause_reading()  # until the channel is open
    return forward


def _reason(error: DstackError) -> str:
    if isinstance(error, AgentRefused) and error.status == NOT_RUNNING:
        return f"the job does not run ({error})"
    return str(error)

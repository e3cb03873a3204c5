"""A session channel: a shell, a command or SFTP in a job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import asyncssh

from dstack.agent.protocol import ERROR_OUTPUT, ExecExit, ExecRequest
from dstack.core.errors import DstackError
from dstack.server.hosts.agent_client import AgentClient
from dstack.server.hosts.sessions import ExecSession

FAILED_STATUS = 255
"""What `ssh` itself exits with when it cannot do what was asked."""
MAX_PENDING_BYTES = 256 * 1024
"""Of input that the program has not taken; then the channel is not read."""

logger = logging.getLogger(__name__)

_Step = Callable[[ExecSession], Awaitable[None]]


class JobSession(asyncssh.SSHServerSession[bytes]):
    """One channel. `find_agent` raises DstackError with what to tell when the job cannot be entered."""

    def __init__(self, job_id: str, user: str | None, find_agent: Callable[[], Awaitable[AgentClient]]) -> None:
        self._job_id = job_id
        self._user = user
        self._find_agent = find_agent
        self._is_sftp = False
        self._running: asyncio.Task[None] | None = None
        self._steps: asyncio.Queue[_Step] = asyncio.Queue()
        self._pending_bytes = 0
        self._is_writable = asyncio.Event()
        self._is_writable.set()

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def pty_requested(self, *_: object) -> bool:
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        self._is_sftp = subsystem == "sftp"
        return self._is_sftp

    def session_started(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self._run())

    # What the client sends, in its order

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._pending_bytes += len(data)
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._channel.pause_reading()

        async def send(program: ExecSession) -> None:
            await program.send_input(data)
            was_held = self._pending_bytes > MAX_PENDING_BYTES
            self._pending_bytes -= len(data)
            if was_held and self._pending_bytes <= MAX_PENDING_BYTES:
                self._channel.resume_reading()

        self._steps.put_nowait(send)

    def eof_received(self) -> bool:
        self._steps.put_nowait(lambda program: program.end_input())
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        self._steps.put_nowait(lambda program: program.resize(width, height))

    def signal_received(self, signal: str) -> None:
        self._steps.put_nowait(lambda program: program.send_signal(signal))

    def break_received(self, msec: int) -> bool:
        self.signal_received("INT")
        return True

    # What the program sends

    def pause_writing(self) -> None:
        self._is_writable.clear()

    def resume_writing(self) -> None:
        self._is_writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        try:
            agent = await self._find_agent()
            program = await agent.exec(self._job_id, self._request())
            try:
                self._exit(await self._drive(program))
            finally:
                program.close()
        except DstackError as error:
            logger.debug("job %s: %s", self._job_id, error.detail)
            self._fail(str(error))
        except BrokenPipeError:
            logger.debug("job %s: the client left", self._job_id)

    def _request(self) -> ExecRequest:
        term, (columns, rows, *_) = self._channel.get_terminal_type(), self._channel.get_terminal_size()
        return ExecRequest(
            command=self._channel.get_command(),
            env=dict(self._channel.get_environment()),
            terminal={"term": term, "columns": columns or 80, "rows": rows or 24} if term else None,
            user=self._user,
            sftp=self._is_sftp,
        )

    async def _drive(self, program: ExecSession) -> ExecExit:
        feeding = asyncio.ensure_future(self._feed(program))
        try:
            async for kind, data in program.output():
                self._channel.write(data, asyncssh.EXTENDED_DATA_STDERR if kind == ERROR_OUTPUT else None)
                await self._is_writable.wait()
        finally:
            feeding.cancel()
        assert program.exit is not None
        return program.exit

    async def _feed(self, program: ExecSession) -> None:
        """Ends by being cancelled, or with the connection, which reading notices too."""
        while True:
            step = await self._steps.get()
            try:
                await step(program)
            except DstackError as error:
                logger.debug("job %s: %s", self._job_id, error.detail)
                return

    def _exit(self, end: ExecExit) -> None:
        if end.signal is not None:
            self._channel.exit_with_signal(end.signal)
        else:
            self._channel.exit(FAILED_STATUS if end.exit_status is None else end.exit_status)

    def _fail(self, message: str) -> None:
        if self._channel.is_closing():
            return
        self._channel.write_stderr(f"dstack: {message}\r\n".encode())
        self._channel.exit(FAILED_STATUS)

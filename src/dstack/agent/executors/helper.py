"""Processes of the agent's own that work inside a task's files and as its user (see `dstack.agent.within`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import List, Optional

from dstack.agent import sessions, within
from dstack.agent.executors import execs, job
from dstack.agent.executors.process_exec import make_pipes, pieces
from dstack.agent.protocol import ERROR_OUTPUT, OUTPUT, ExecExit
from dstack.agent.streams import Stream

DIAL_SECONDS = 20.0


def as_account(account: job.Account, folder: str) -> List[str]:
    """The options of `within` for a user of this host."""
    groups = os.getgrouplist(account.name, account.gid) if os.geteuid() == 0 else []
    options = ["--user", f"{account.uid}:{account.gid}", "--home", account.home, "--dir", folder]
    return [*options, "--groups", ",".join(map(str, groups))]


async def start(arguments: List[str]) -> HelperProgram:
    """Starts one with pipes. `arguments` as `within.command` makes them; raises OSError."""
    ours, theirs = make_pipes(None)
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], start_new_session=True, env={}
        )
    except BaseException:
        for stream in ours:
            stream.close()
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    return HelperProgram(process, ours)


class HelperProgram:
    """It reads its input to the end, so it cannot outlive the agent."""

    def __init__(self, process: asyncio.subprocess.Process, streams: List[Stream]) -> None:
        self._process: Optional[asyncio.subprocess.Process] = process
        self._main, self._errors = streams
        self._exit = asyncio.ensure_future(process.wait())

    @property
    def is_running(self) -> bool:
        return self._process is not None and not self._exit.done()

    def end(self) -> None:
        """The task has ended, and its files with it."""
        if self._process and self.is_running:
            self._process.kill()

    def outputs(self) -> List[sessions.Output]:
        return [pieces(OUTPUT, self._main, None), pieces(ERROR_OUTPUT, self._errors, None)]

    async def write(self, data: bytes) -> None:
        await self._main.write(data)

    async def end_input(self) -> None:
        self._main.end_writing()

    async def resize(self, columns: int, rows: int) -> None:
        return

    async def send_signal(self, number: signal.Signals) -> None:
        if self._process and self.is_running:
            self._process.send_signal(number)

    async def wait(self) -> ExecExit:
        status = await asyncio.shield(self._exit)
        return ExecExit(exit_status=status) if status >= 0 else ExecExit(signal=sessions.signal_name(-status))

    async def close(self) -> None:
        self.end()
        process, self._process = self._process, None
        if process is None:
            return
        await self._exit
        for stream in (self._main, self._errors):
            stream.close()


async def dial(options: List[str], path: str) -> socket.socket:
    """Connects to a Unix socket inside a task. Raises SessionRefused."""
    arguments = within.command("dial", "--socket", path, *options)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs.fileno(),
                stderr=asyncio.subprocess.PIPE,
                env={},
            )
        try:
            _, errors = await asyncio.wait_for(process.communicate(), DIAL_SECONDS)
        except asyncio.TimeoutError as error:
            raise sessions.SessionRefused(502, f"the socket {path} of the task does not answer") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        _, descriptors = execs.receive(ours)
    if not descriptors:
        why = errors.decode(errors="replace").strip().splitlines()
        message = f"the socket {path} of the task cannot be reached: {why[-1] if why else 'unknown'}"
        raise sessions.SessionRefused(502, message)
    return socket.socket(fileno=descriptors[0])

"""The agent's side of a program beside a process job (see `execs`): it holds the other ends of its files."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import struct
import termios
from typing import Any, AsyncIterator, Dict, List, Optional, Tuple

from dstack.agent import sessions
from dstack.agent.executors import execs, job
from dstack.agent.http import short_path
from dstack.agent.protocol import ERROR_OUTPUT, MAX_FRAME_BYTES, OUTPUT, ExecExit
from dstack.agent.streams import Stream

END_OF_INPUT = b"\x04"
_IUTF8 = 0o40000
_NO_SHELLS = ("nologin", "false")


def shell_command(account: job.Account, text: Optional[str]) -> Tuple[str, List[str]]:
    """(program, arguments): the user's shell with the text, or as a login shell."""
    shell = account.shell
    if not os.access(shell, os.X_OK) or os.path.basename(shell) in _NO_SHELLS:
        shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
    name = os.path.basename(shell)
    return shell, ["-" + name] if text is None else [name, "-c", text]


async def start(folder: str, command: job.Command, terminal: Optional[Dict[str, Any]]) -> ProcessProgram:
    """Has the supervisor of the task in `folder` start a program. Raises SessionRefused."""
    connection = await _connect(os.path.join(folder, execs.SOCKET))
    try:
        ours, theirs = _terminal(command.account, terminal) if terminal else make_pipes(command.account)
        try:
            _ask(connection, command, theirs, terminal is not None)
            answer = json.loads(await _receive(connection) or b"{}")
        except BaseException:
            for stream in ours:
                stream.close()
            raise
        finally:
            for descriptor in set(theirs):
                os.close(descriptor)
        if "pid" not in answer:
            for stream in ours:
                stream.close()
            raise sessions.SessionRefused(400, answer.get("error", "the task ends"))
    except BaseException:
        connection.close()
        raise
    return ProcessProgram(connection, ours, terminal is not None)


class ProcessProgram:
    """`streams`: input and output, and unless there is a terminal, the error output."""

    def __init__(self, connection: socket.socket, streams: List[Stream], on_terminal: bool) -> None:
        self._connection: Optional[socket.socket] = connection
        self._main, self._errors = streams[0], streams[1:]
        self._on_terminal = on_terminal
        self._exit = asyncio.ensure_future(self._wait(connection))

    def outputs(self) -> List[sessions.Output]:
        until = self._exit if self._on_terminal else None
        found = [pieces(OUTPUT, self._main, until)]
        return found + [pieces(ERROR_OUTPUT, errors, None) for errors in self._errors]

    async def write(self, data: bytes) -> None:
        await self._main.write(data)

    async def end_input(self) -> None:
        if self._on_terminal:
            await self._main.write(END_OF_INPUT)
        else:
            self._main.end_writing()

    async def resize(self, columns: int, rows: int) -> None:
        if self._on_terminal:
            set_size(self._main.reading, columns, rows)

    async def send_signal(self, number: signal.Signals) -> None:
        """To what runs in the foreground of the terminal; without one, to the program and its group."""
        if self._on_terminal:
            with contextlib.suppress(OSError):  # nobody there any more
                os.killpg(os.tcgetpgrp(self._main.reading), number)
        elif self._connection:
            with contextlib.suppress(OSError):
                self._connection.send(json.dumps({"signal": int(number)}).encode())

    async def wait(self) -> ExecExit:
        return await asyncio.shield(self._exit)

    async def _wait(self, connection: socket.socket) -> ExecExit:
        data = await _receive(connection)
        if not data:  # the supervisor was killed, and with it everything of the task
            return ExecExit(signal="KILL")
        message = json.loads(data)
        if "signal" in message:
            return ExecExit(signal=sessions.signal_name(message["signal"]))
        return ExecExit(exit_status=message["exit_status"])

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._exit.cancel()
        await asyncio.gather(self._exit, return_exceptions=True)
        connection.close()
        for stream in (self._main, *self._errors):
            stream.close()


async def pieces(
    kind: int, stream: Stream, until: Optional[asyncio.Future[ExecExit]]
) -> AsyncIterator[Tuple[int, bytes]]:
    """An output until its end, or until nothing more is there once `until` is done."""
    while True:
        data = await stream.read(MAX_FRAME_BYTES, until)
        if not data:
            return
        yield kind, data


async def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    try:
        address, folder = short_path(path)
        try:
            await asyncio.get_running_loop().sock_connect(connection, address)
        finally:
            os.close(folder)
    except OSError as error:
        connection.close()
        message = (
            f"no program can be started beside the task, as its supervisor does not listen ({error.strerror})"
        )
        raise sessions.SessionRefused(409, message) from error
    return connection


def _ask(connection: socket.socket, command: job.Command, files: List[int], on_terminal: bool) -> None:
    wanted = {"command": dataclasses.asdict(command), "on_terminal": on_terminal}
    request = os.memfd_create("exec", os.MFD_CLOEXEC)
    try:
        os.pwrite(request, json.dumps(wanted).encode(), 0)
        execs.send(connection, b"start", [request, *files])
    finally:
        os.close(request)


async def _receive(connection: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(connection, execs.MAX_MESSAGE_BYTES)
    except ConnectionError:
        return b""


def _terminal(account: job.Account, terminal: Dict[str, Any]) -> Tuple[List[Stream], List[int]]:
    """A terminal as the system makes it: what is typed is echoed."""
    master, slave = os.openpty()
    mode = termios.tcgetattr(slave)
    mode[0] |= _IUTF8
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    set_size(master, int(terminal.get("columns") or 80), int(terminal.get("rows") or 24))
    if os.geteuid() == 0:
        os.fchown(slave, account.uid, account.gid)
    return [Stream(master, master)], [slave, slave, slave]


def make_pipes(account: Optional[job.Account]) -> Tuple[List[Stream], List[int]]:
    """(input and output, error output), and the other ends: those of the program, which `account` may open."""
    input_read, input_write = os.pipe()
    output_read, output_write = os.pipe()
    error_read, error_write = os.pipe()
    theirs = [input_read, output_write, error_write]
    if account is not None and os.geteuid() == 0:
        for descriptor in theirs:  # so that the program may open /dev/stdout and the like
            os.fchown(descriptor, account.uid, account.gid)
    return [Stream(output_read, input_write), Stream(error_read, error_read)], theirs


def set_size(terminal: int, columns: int, rows: int) -> None:
    """The size in characters, of which the foreground is told by SIGWINCH."""
    limited = (min(max(size, 0), 65535) for size in (rows, columns))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *limited, 0, 0))

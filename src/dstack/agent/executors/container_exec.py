"""A program beside a container's own, by Docker's exec. Docker does not end one whose client has left: we do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import Any, AsyncIterator, Dict, List, Optional, Tuple

from dstack.agent import processes, sessions
from dstack.agent.docker import Docker, DockerError
from dstack.agent.protocol import ERROR_OUTPUT, MAX_FRAME_BYTES, OUTPUT, ExecExit, ExecRequest
from dstack.agent.streams import Stream

END_OF_INPUT = b"\x04"
HANGUP_SECONDS = 5.0
POLL_SECONDS = 0.02
_HEADER_BYTES = 8
_STDERR = 2
_log = logging.getLogger(__name__)

# The shell is looked for in the image. What a text is run with gets it as `$1`.
SHELL_SCRIPT = """SHELL=$(command -v bash || command -v sh); export SHELL
if [ $# -gt 0 ]; then exec "$SHELL" -c "$1"; fi
if "$SHELL" -l -c : >/dev/null 2>&1; then exec "$SHELL" -l; fi
exec "$SHELL"
"""

# Where the agent itself may not enter the container.
SFTP_SCRIPT = """for folder in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec /usr/lib/misc; do
  if [ -x $folder/sftp-server ]; then exec $folder/sftp-server; fi
done
echo "files cannot be served: the agent does not run as root, and the image has no sftp-server of its own" >&2
exit 1
"""


def mark(agent_id: str) -> str:
    """The shell's `$0`, by which an agent finds the programs that it started before it was killed."""
    return f"dstack-{agent_id}"


async def start(docker: Docker, container: str, request: ExecRequest, agent_id: str) -> ContainerProgram:
    """Raises DockerError."""
    environment, on_terminal = dict(request.env), request.terminal is not None
    text = [] if request.command is None else [request.command]
    script = SFTP_SCRIPT if request.sftp else SHELL_SCRIPT
    if request.terminal is not None:
        environment = {"TERM": str(request.terminal.get("term") or "xterm"), **environment}
    config = {
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": on_terminal,
        "Cmd": ["sh", "-c", script, mark(agent_id), *text],
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "User": request.user or "",
    }
    made = await docker.call("POST", f"/containers/{container}/exec", body=config)
    stream = await docker.upgrade(f"/exec/{made['Id']}/start", {"Detach": False, "Tty": on_terminal})
    program = ContainerProgram(Exec(docker, container, str(made["Id"])), stream, on_terminal)
    if request.terminal is not None:
        program.resize_soon(int(request.terminal.get("columns") or 80), int(request.terminal.get("rows") or 24))
    return program


class Exec:
    """What Docker knows of one exec."""

    def __init__(self, docker: Docker, container: str, exec_id: str) -> None:
        self._docker = docker
        self._container = container
        self._id = exec_id

    async def inspect(self) -> Dict[str, Any]:
        return dict(await self._docker.call("GET", f"/exec/{self._id}/json"))

    async def resize(self, columns: int, rows: int) -> None:
        await self._docker.call("POST", f"/exec/{self._id}/resize", {"w": columns, "h": rows})

    async def pid(self) -> int:
        """Of the running program, as this host numbers it; 0 when there is none to be signalled."""
        found = await self.inspect()
        while not found["Pid"] and found["ExitCode"] is None:
            await asyncio.sleep(POLL_SECONDS)
            found = await self.inspect()
        pid = int(found["Pid"]) if found["Running"] else 0
        return pid if pid and processes.is_in_container(pid, self._container) else 0

    async def wait(self) -> ExecExit:
        """Docker tells no signal: 128 and its number, as shells do."""
        found = await self.inspect()
        while found["Running"] or found["ExitCode"] is None:
            await asyncio.sleep(POLL_SECONDS)
            found = await self.inspect()
        return ExecExit(exit_status=int(found["ExitCode"]))

    async def send(self, pid: int, number: signal.Signals) -> None:
        """To the foreground of its terminal, or to the program and its group."""
        group = processes.foreground_group(pid) or pid
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        except PermissionError:
            await self._signal_inside(pid, number)

    async def _signal_inside(self, pid: int, number: signal.Signals) -> None:
        """By the container's own shell, for an agent that may not signal processes of others."""
        inner = processes.inner_pid(pid)
        text = f"kill -s {sessions.signal_name(number)} -- -{inner}"
        config = {"Cmd": ["sh", "-c", text], "User": "0"}
        made = await self._docker.call("POST", f"/containers/{self._container}/exec", body=config)
        await self._docker.call("POST", f"/exec/{made['Id']}/start", body={"Detach": True})

    async def hang_up(self) -> None:
        """SIGHUP to the whole session; after a while, SIGKILL for those that do not ignore it."""
        pid = await self.pid()
        if not pid:
            return
        if os.geteuid() == 0:
            members = processes.session_members(pid)
            processes.hang_up(members)
            asyncio.get_running_loop().call_later(HANGUP_SECONDS, processes.kill_hung_up, members)
        else:
            await self._signal_inside(pid, signal.SIGHUP)


async def hang_up_leftovers(docker: Docker, container: Dict[str, Any], agent_id: str) -> None:
    """Hangs up what an agent before this one had started in the container. Raises DockerError."""
    for exec_id in container.get("ExecIDs") or []:
        left = Exec(docker, container["Id"], exec_id)
        if mark(agent_id) in ((await left.inspect())["ProcessConfig"].get("arguments") or []):
            await left.hang_up()


class ContainerProgram:
    """`stream` is Docker's: raw with a terminal, else with a header before each piece of output."""

    def __init__(self, started: Exec, stream: Stream, on_terminal: bool) -> None:
        self._exec = started
        self._stream: Optional[Stream] = stream
        self._on_terminal = on_terminal
        self._pid = asyncio.ensure_future(started.pid())
        self._sizing: Optional[asyncio.Future[None]] = None

    @property
    def _open(self) -> Stream:
        assert self._stream
        return self._stream

    def outputs(self) -> List[sessions.Output]:
        return [self._raw() if self._on_terminal else self._separated()]

    async def _raw(self) -> AsyncIterator[Tuple[int, bytes]]:
        while True:
            data = await self._open.read(MAX_FRAME_BYTES)
            if not data:
                return
            yield OUTPUT, data

    async def _separated(self) -> AsyncIterator[Tuple[int, bytes]]:
        """Docker's header: 1 byte kind, 3 bytes nothing, 4 bytes big-endian length."""
        data, kind, left = b"", OUTPUT, 0
        while True:
            more = await self._open.read(MAX_FRAME_BYTES)
            if not more:
                return
            data += more
            while data:
                if not left:
                    if len(data) < _HEADER_BYTES:
                        break
                    kind = ERROR_OUTPUT if data[0] == _STDERR else OUTPUT
                    left, data = int.from_bytes(data[4:_HEADER_BYTES], "big"), data[_HEADER_BYTES:]
                    continue
                piece, data = data[:left], data[left:]
                left -= len(piece)
                yield kind, piece

    async def write(self, data: bytes) -> None:
        if self._sizing and not self._sizing.done():  # what is typed finds the terminal as large as it is
            await asyncio.wait({self._sizing})
        await self._open.write(data)

    async def end_input(self) -> None:
        if self._on_terminal:
            await self._open.write(END_OF_INPUT)
        else:
            self._open.end_writing()

    async def resize(self, columns: int, rows: int) -> None:
        if self._on_terminal:
            self.resize_soon(columns, rows)

    def resize_soon(self, columns: int, rows: int) -> None:
        """Docker can do it only once the program has been started, so not yet maybe."""
        if self._sizing:
            self._sizing.cancel()
        self._sizing = asyncio.ensure_future(self._resize(columns, rows))

    async def _resize(self, columns: int, rows: int) -> None:
        if await asyncio.shield(self._pid):
            try:
                await self._exec.resize(columns, rows)
            except DockerError as error:
                _log.info("a terminal keeps its size: %s", error)

    async def send_signal(self, number: signal.Signals) -> None:
        pid = await asyncio.shield(self._pid)
        if pid:
            await self._exec.send(pid, number)

    async def wait(self) -> ExecExit:
        try:
            return await self._exec.wait()
        except DockerError as error:
            if error.status != 404:
                raise
            return ExecExit(signal="KILL")  # the container is gone, and everything in it

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        stream.close()
        parts = [part for part in (self._pid, self._sizing) if part]
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        with contextlib.suppress(DockerError):  # the container is gone
            await self._exec.hang_up()

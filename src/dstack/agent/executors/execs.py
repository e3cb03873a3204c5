"""Programs beside a job, started by its supervisor: so they belong to the job and end with it at the latest.

The agent connects to `exec.sock` (SOCK_SEQPACKET), once for each program. Its first message brings four
descriptors: a file with the `Command` as JSON, and input, output and error output. The answer is `{"pid"}` or
`{"error"}`; once the program has ended, `{"exit_status"}` or `{"signal"}`. Meanwhile the agent may send
`{"signal"}`. When the connection closes before that, say as the agent was killed, the program is hung up.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import time
from typing import Any, Dict, List, Optional, Tuple

from dstack.agent import processes
from dstack.agent.executors import job
from dstack.agent.executors.cgroups import Group
from dstack.agent.executors.ports import PortMover
from dstack.agent.http import bind

SOCKET = "exec.sock"
HANGUP_SECONDS = 5.0
END_SECONDS = 1.0
MAX_MESSAGE_BYTES = 4096
_DESCRIPTORS = 4


class Exec:
    """One program; `connection` is to the agent."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid = 0


class Execs:
    """All programs beside one job, which share its limits. Raises OSError when the socket cannot be made."""

    def __init__(self, path: str, group: Group) -> None:
        self._listening = bind(path, socket.SOCK_SEQPACKET)
        self._listening.listen(16)
        self._group = group
        self._poll: Optional[select.poll] = None
        self._execs: Dict[int, Exec] = {}
        self._hung_up: List[Tuple[float, List[processes.Member]]] = []

    def watch(self, poll: select.poll) -> None:
        """Has `poll` tell of what `serve` is for."""
        self._poll = poll
        poll.register(self._listening.fileno(), select.POLLIN)

    @property
    def next_at(self) -> Optional[float]:
        """When `serve` has to be called at the latest."""
        return self._hung_up[0][0] if self._hung_up else None

    def serve(self, ready: Dict[int, int]) -> None:
        """Does what the agent asks for on descriptors that are ready, and what is due."""
        for descriptor in ready:
            found = self._execs.get(descriptor)
            if found is not None:
                self._heed(found)
        if self._listening.fileno() in ready:
            self._accept()
        while self._hung_up and self._hung_up[0][0] <= time.monotonic():
            processes.kill_hung_up(self._hung_up.pop(0)[1])

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listening.accept()
            connection.setblocking(False)
            assert self._poll
            self._execs[connection.fileno()] = Exec(connection)
            self._poll.register(connection.fileno(), select.POLLIN)

    def _heed(self, asked: Exec) -> None:
        try:
            data, descriptors = receive(asked.connection)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if descriptors:
            self._start(asked, descriptors)
        elif data:
            self._signal(asked, int(json.loads(data)["signal"]))
        else:
            self._forget(asked)

    def _start(self, asked: Exec, descriptors: List[int]) -> None:
        try:
            with open(descriptors[0], "rb", closefd=False) as file:
                wanted = json.load(file)
            command = job.Command(**{**wanted["command"], "account": job.Account(**wanted["command"]["account"])})
            files = (descriptors[1], descriptors[2], descriptors[3])
            asked.pid = job.spawn(command, files, wanted["on_terminal"], PortMover({}), self._group)
            self._tell(asked, {"pid": asked.pid})
        except job.StartError as error:
            self._tell(asked, {"error": str(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _signal(self, asked: Exec, number: int) -> None:
        if asked.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(asked.pid, number)

    def _tell(self, asked: Exec, message: Dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # an agent that is gone: its connection reads as closed
            asked.connection.send(json.dumps(message).encode())

    def ended(self, pid: int, status: int) -> None:
        """A child has been collected: tells the agent when it was one of ours."""
        for known in self._execs.values():
            if known.pid == pid:
                known.pid = 0
                self._tell(known, ending(status))
                return

    def _forget(self, asked: Exec) -> None:
        """The agent or its client is gone."""
        assert self._poll
        self._poll.unregister(asked.connection.fileno())
        del self._execs[asked.connection.fileno()]
        asked.connection.close()
        if asked.pid:
            members = processes.session_members(asked.pid)
            processes.hang_up(members)
            self._hung_up.append((time.monotonic() + HANGUP_SECONDS, members))

    def end_all(self) -> None:
        """The job has ended: hangs up every program, kills those that stay, and tells of all."""
        for known in self._execs.values():
            if known.pid:
                processes.hang_up(processes.session_members(known.pid))
        deadline = time.monotonic() + END_SECONDS
        while self._collect() and time.monotonic() < deadline:
            time.sleep(0.005)
        for known in self._execs.values():
            if known.pid:
                os.kill(known.pid, signal.SIGKILL)
                self.ended(known.pid, os.waitpid(known.pid, 0)[1])
        self._listening.close()

    def _collect(self) -> bool:
        """Whether a program is still there."""
        for known in self._execs.values():
            if known.pid:
                pid, status = os.waitpid(known.pid, os.WNOHANG)
                if pid:
                    self.ended(pid, status)
        return any(known.pid for known in self._execs.values())


def ending(status: int) -> Dict[str, Any]:
    """The message about a wait status."""
    if os.WIFEXITED(status):
        return {"exit_status": os.WEXITSTATUS(status)}
    return {"signal": os.WTERMSIG(status)}


def receive(connection: socket.socket) -> Tuple[bytes, List[int]]:
    """A message and the descriptors that came with it."""
    numbers = array.array("i")
    space = socket.CMSG_SPACE(_DESCRIPTORS * numbers.itemsize)
    data, ancillary, _, _ = connection.recvmsg(MAX_MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return data, list(numbers)


def send(connection: socket.socket, data: bytes, descriptors: List[int]) -> None:
    """The reverse of `receive`."""
    content = array.array("i", descriptors)
    connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, content)])

"""Ports of processes: several replicas that listen on the same port can run on one host.

A replica whose port is taken is given another one, and told in `DSTACK_SERVICE_PORT`. One that listens on the
fixed port all the same is moved with the kernel's help: a seccomp filter has its `bind` and `connect` calls wait
while the supervisor writes the other port into the address. Nothing else of the process's network is changed, no
rights are needed, and a replica whose port is free runs without any of this. Where the kernel (Linux 5.5) or the
machine type does not offer it, only `DSTACK_SERVICE_PORT` remains.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import platform
import select
import socket
import struct
from typing import Dict, Iterable, Optional, Tuple

from dstack.agent.protocol import TaskSpec
from dstack.agent.tasks import Task

VARIABLE = "DSTACK_SERVICE_PORT"
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_NEW_LISTENER = 8
_ALLOW = 0x7FFF0000
_NOTIFY = 0x7FC00000
_CONTINUE = 1
_RECEIVE = 0xC0502100
_SEND = 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_CALLS: Dict[str, Tuple[int, int, int, int]] = {
    "x86_64": (0xC000003E, 317, 49, 42),
    "aarch64": (0xC00000B7, 277, 200, 203),
}
"""By machine: its audit number, and those of the calls `seccomp`, `bind` and `connect`."""
_MAX_ADDRESS_BYTES = 128
_libc = ctypes.CDLL(None, use_errno=True)


def choose(spec: TaskSpec, tasks: Iterable[Task]) -> Dict[int, int]:
    """For each port of the task the port of the host that it is to be: the same one where that is free."""
    taken = {port["host"] for task in tasks for port in task.state.ports}
    chosen: Dict[int, int] = {}
    for port in spec.ports:
        chosen[port] = port if port not in taken and _is_free(port) else _free_port(taken)
        taken.add(chosen[port])
    return chosen


def environment(chosen: Dict[int, int]) -> Dict[str, str]:
    """What a task is told of its first port."""
    hosts = list(chosen.values())
    return {VARIABLE: str(hosts[0])} if hosts else {}


def _is_free(port: int) -> bool:
    """Whether a process could listen there; ports that only root may use are left to it to try."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def _free_port(taken: Iterable[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port


class PortMover:
    """Moves the ports of one job. `install` runs in the job's own process, the rest in its supervisor."""

    def __init__(self, moved: Dict[int, int]) -> None:
        self._moved = moved
        self._sockets: Optional[Tuple[socket.socket, socket.socket]] = None
        self.listener = -1
        """Readable when a call of the job waits; -1: no port is moved."""

    def prepare(self) -> None:
        """Before the fork."""
        if self._moved and platform.machine() in _CALLS:
            self._sockets = socket.socketpair()

    def install(self) -> None:
        """Sets the filter for this process and its children, and hands over the listener.

        The last thing before the job's program: calls wait from now on, and nobody answers until it is started.
        """
        if self._sockets is None:
            return
        listener = _set_filter()
        if listener >= 0:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))]
            self._sockets[1].sendmsg([b"1"], ancillary)
            os.close(listener)
        for one in self._sockets:
            one.close()

    def receive(self) -> None:
        """The listener, where the job could set the filter."""
        if self._sockets is None:
            return
        own, others = self._sockets
        others.close()
        size = socket.CMSG_LEN(array.array("i").itemsize)
        _, ancillary, _, _ = own.recvmsg(1, size)
        own.close()
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self.listener = array.array("i", data)[0]
                os.set_inheritable(self.listener, False)

    def answer(self) -> bool:
        """Lets one waiting call go on, with another port in its address if need be. False: the job is gone."""
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer, True)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN):
                return True
            return _is_alive(self.listener) if error.errno == errno.ENOENT else False
        id, pid, _, number, _, _, _, address, length, *_ = _NOTIFICATION.unpack(buffer)
        with contextlib.suppress(
            OSError
        ):  # the process is gone, or has given a wrong address: the kernel tells it
            self._move(pid, address, length, is_connecting=number == _CALLS[platform.machine()][3])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.listener, _SEND, bytearray(_ANSWER.pack(id, 0, 0, _CONTINUE)), True)
        return True

    def _move(self, pid: int, address: int, length: int, *, is_connecting: bool) -> None:
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            data = memory.read(min(length, _MAX_ADDRESS_BYTES))
            if len(data) < 8:
                return
            (family,) = struct.unpack_from("=H", data)
            (port,) = struct.unpack_from("!H", data, 2)
            if family not in (socket.AF_INET, socket.AF_INET6) or port not in self._moved:
                return
            if is_connecting and not _is_loopback(family, data):
                return
            memory.seek(address + 2)
            memory.write(struct.pack("!H", self._moved[port]))

    def close(self) -> None:
        os.close(self.listener)
        self.listener = -1


def _is_alive(listener: int) -> bool:
    """A call that was interrupted while it waited is no end of the job."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return not any(event & select.POLLHUP for _, event in poll.poll(0))


def _is_loopback(family: int, data: bytes) -> bool:
    raw = data[4:8] if family == socket.AF_INET else data[8:24]
    address = ipaddress.ip_address(raw) if len(raw) in (4, 16) else None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and address.is_loopback


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _set_filter() -> int:
    """The listener's descriptor; -1 where the kernel does not allow for one."""
    audit, seccomp, bind, connect = _CALLS[platform.machine()]
    load, equals, give = 0x20, 0x15, 0x06
    lines = [
        (load, 0, 0, 4),
        (equals, 1, 0, audit),
        (give, 0, 0, _ALLOW),
        (load, 0, 0, 0),
        (equals, 1, 0, bind),
        (equals, 0, 1, connect),
        (give, 0, 0, _NOTIFY),
        (give, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = _Program(len(lines), ctypes.cast(code, ctypes.c_void_p))
    if os.geteuid() != 0:
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    result: int = _libc.syscall(
        ctypes.c_long(seccomp),
        ctypes.c_long(_SET_MODE_FILTER),
        ctypes.c_long(_NEW_LISTENER),
        ctypes.byref(program),
    )
    return result

"""What is done inside a task's files and as its user, in a process of its own:
`python agent.pyz sftp` serves SFTP on its input and output, `python agent.pyz dial` connects to a Unix socket.

With `--pid` it works in the root of that process, a container's, with no more rights than that process has.
Nothing of this program can be loaded from there: everything is imported before, and nothing can be afterwards. For
the same reason users are looked up by reading two files, and not by the C library, which would load what it finds.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import os
import socket
import struct
import sys
from typing import Dict, List, NamedTuple, Optional

from dstack.agent.sftp import wire
from dstack.agent.sftp.server import Server

COMMANDS = ("sftp", "dial")
UMASK = 0o022
_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); import dstack.agent.within as w; sys.exit(w.main())"
_PR_CAPBSET_DROP = 24
_CAPABILITIES_VERSION = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


class NotAllowed(Exception):
    """It cannot be done; the message is for the user."""


class User(NamedTuple):
    uid: int
    gid: int
    groups: List[int]
    home: str


def command(name: str, *arguments: str) -> List[str]:
    """How this is run by another process, from the zipapp as well as from a folder of sources."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from dstack.agent.within import main; sys.exit(main())"
    )
    return [sys.executable, "-I", "-c", program, root, name, *arguments]


def main(arguments: Optional[List[str]] = None) -> int:
    """Returns the exit code."""
    options = _parse(arguments)
    try:
        user = enter(options)
        if options.command == "dial":
            dial(options.socket)
        else:
            users, groups = _names("/etc/passwd"), _names("/etc/group")
            os.umask(UMASK)
            Server(os.fsencode(user.home), users, groups).serve(0, 1)
    except (NotAllowed, OSError, wire.Malformed) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dstack-agent", description="Works inside a task's files.")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--pid", type=int, help="the process in whose root to work; default: that of the host")
    parser.add_argument("--user", default="", help="name or number, with `:group` or without; default: unchanged")
    parser.add_argument("--groups", default="", help="numbers, with commas; default: as in /etc/group")
    parser.add_argument("--home", default="", help="default: as in /etc/passwd")
    parser.add_argument("--dir", default="", help="the folder that relative paths start from; default: the home")
    parser.add_argument("--socket", default="", help="for `dial`: the path of the socket")
    return parser.parse_args(arguments)


def enter(options: argparse.Namespace) -> User:
    """Goes into the root of a process, if there is one, and becomes a user of it. Raises NotAllowed, OSError."""
    sys.meta_path.clear()
    sys.path.clear()
    allowed, pid = None, options.pid
    if pid is not None:
        if _inode(f"/proc/{pid}/ns/user") != _inode("/proc/self/ns/user"):
            raise NotAllowed("the container has users of its own, which the agent cannot take on")
        allowed = _allowed_capabilities(pid)
        os.chroot(f"/proc/{pid}/root")
        os.chdir("/")
    user = find_user(options.user)
    if options.groups:
        user = user._replace(groups=[int(group) for group in options.groups.split(",")])
    if options.home:
        user = user._replace(home=options.home)
    _become(user, allowed)
    for candidate in (options.dir, user.home, "/"):
        if candidate and os.path.isdir(candidate):
            os.chdir(candidate)
            break
    return user


def find_user(name: str) -> User:
    """`name`, `uid`, `name:group` or `uid:gid`, from the two files; without a name the present one."""
    known, _, group = (name or str(os.geteuid())).partition(":")
    entries = [line for line in _lines("/etc/passwd") if len(line) >= 6]
    entry = next((line for line in entries if known in (line[0], line[2])), None)
    if entry is None and not known.isdigit():
        raise NotAllowed(f"there is no user {known!r}")
    uid, home = (int(entry[2]), entry[5]) if entry else (int(known), "/")
    gid = int(entry[3]) if entry else (os.getegid() if not name else int(known))
    if group:
        return User(uid, _find_group(group), [], home or "/")
    named = entry[0] if entry else ""
    others = [int(line[2]) for line in _lines("/etc/group") if len(line) >= 4 and named in line[3].split(",")]
    return User(uid, gid, others if named else [], home or "/")


def _find_group(name: str) -> int:
    if name.isdigit():
        return int(name)
    for line in _lines("/etc/group"):
        if len(line) >= 3 and line[0] == name:
            return int(line[2])
    raise NotAllowed(f"there is no group {name!r}")


def _lines(path: str) -> List[List[str]]:
    try:
        with open(path, errors="replace") as file:
            return [line.rstrip("\n").split(":") for line in file if not line.startswith("#")]
    except OSError:
        return []


def _names(path: str) -> Dict[int, str]:
    return {int(line[2]): line[0] for line in _lines(path) if len(line) >= 3 and line[2].isdigit()}


def _inode(path: str) -> int:
    return os.stat(path).st_ino


def _become(user: User, allowed: Optional[int]) -> None:
    if os.geteuid() != 0:
        if user.uid != os.geteuid():
            raise NotAllowed("the agent may not change to the task's user, as it does not run as root")
        return
    if allowed is not None:
        _drop_bounds(allowed)
    os.setgroups(user.groups)
    os.setgid(user.gid)
    os.setuid(user.uid)
    if user.uid == 0 and allowed is not None:
        _limit_capabilities(allowed)


def _allowed_capabilities(pid: int) -> int:
    """The bounding set of a process: what root can do in its container."""
    with open(f"/proc/{pid}/status", errors="replace") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd:"))


def _drop_bounds(allowed: int) -> None:
    for number in range(64):
        if not allowed >> number & 1:
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # numbers that the kernel does not know fail


def _limit_capabilities(allowed: int) -> None:
    """Leaves root what the container's root has, and nothing to inherit."""
    low, high = allowed & 0xFFFFFFFF, allowed >> 32
    header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    if _libc.capset(header, data):
        number = ctypes.get_errno()
        raise OSError(number, f"the rights of the container cannot be taken on: {os.strerror(number)}")


def dial(path: str) -> None:
    """Connects to a Unix socket and sends the connection through the socket that is this process's output."""
    folder, name = os.path.split(path)
    if folder:
        os.chdir(folder)  # as an address has room for 107 bytes only
    with socket.socket(socket.AF_UNIX) as connected, socket.socket(fileno=os.dup(1)) as output:
        connected.connect(name)
        rights = array.array("i", [connected.fileno()])
        output.sendmsg([b"connected"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

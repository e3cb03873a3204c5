"""What Linux says about processes, and ways to end them all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import Dict, Iterator, List, NamedTuple, Optional

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def name_this_process(name: str) -> None:
    """Sets the name that `ps -o comm` shows; at most 15 characters."""
    _libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent ends, so that none can slip away."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent is killed; ends at once if that has happened already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def be_seen_by_its_user() -> None:
    """Opens this process's folder in `/proc` to its user again, which a change of the user closes."""
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def boot_id() -> str:
    """Changes whenever the host starts anew."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def signal_group(leader: int, number: int) -> None:
    """Signals a process group; one that is gone is none of our concern."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


class Member(NamedTuple):
    """A process of a session; the start time tells it from a later one with the same number."""

    pid: int
    start_time: bytes


def session_members(leader: int) -> List[Member]:
    """The living processes of a session."""
    found = []
    for pid in _pids():
        fields = _stat(pid)
        if fields and int(fields[3]) == leader and fields[0] != b"Z":
            found.append(Member(pid, fields[19]))
    return found


def hang_up(members: List[Member]) -> None:
    """What happens to a session whose terminal is gone: SIGHUP, also to those that are stopped."""
    for member in members:
        for number in (signal.SIGHUP, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member.pid, number)


def kill_hung_up(members: List[Member]) -> None:
    """Kills those that are still there, other than those that ignore SIGHUP (`nohup`), who mean to stay."""
    for member in members:
        fields = _stat(member.pid)
        if fields and fields[19] == member.start_time and not _ignores(member.pid, signal.SIGHUP):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member.pid, signal.SIGKILL)


def foreground_group(pid: int) -> int:
    """The process group in the foreground of the terminal of a process; 0 without a terminal."""
    fields = _stat(pid)
    return max(0, int(fields[5])) if fields and int(fields[4]) else 0


def is_in_container(pid: int, container: str) -> bool:
    """Whether this process of our own numbering belongs to Docker's container with this id."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            return container in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False


def inner_pid(pid: int) -> int:
    """The number that a process has in its own container. Raises ProcessLookupError."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/status", errors="replace") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    raise ProcessLookupError(f"there is no process {pid}")


def ran_seconds(pid: int) -> Optional[float]:
    """Since it was started, whatever has been done to the clock since then; None when it is gone."""
    fields = _stat(pid)
    if not fields:
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _ignores(pid: int, number: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            ignored = next((line.split()[1] for line in file if line.startswith("SigIgn:")), "0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(ignored, 16) >> (number - 1) & 1)


def _stat(pid: int) -> List[bytes]:
    """The fields of `/proc/PID/stat` from the state on; empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _parents(with_zombies: bool) -> Dict[int, int]:
    """Parent of each process."""
    parents: Dict[int, int] = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields and (with_zombies or fields[0] != b"Z"):
            parents[pid] = int(fields[1])
    return parents


def _pids() -> List[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(root: int, with_zombies: bool = False) -> List[int]:
    """All living processes below `root`; with those that have ended and whose parent has yet to collect them."""
    children: Dict[int, List[int]] = {}
    for pid, parent in _parents(with_zombies).items():
        children.setdefault(parent, []).append(pid)
    found: List[int] = []
    todo = list(children.get(root, ()))
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, ()))
    return found


def _has_children() -> bool:
    """Collects those that ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def kill_descendants(root: int) -> bool:
    """Kills all processes below `root` and collects our children among them; False when none was left."""
    if root == os.getpid() and not _has_children():
        return False  # nearly always, and much quicker than a look at all processes of the host
    found = descendants(root)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    _has_children()
    return bool(found)


def named(name: str) -> Iterator[int]:
    """Processes of that name (`ps -o comm`)."""
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/comm", errors="replace") as file:
                found = file.read().rstrip("\n")
        except OSError:  # ended meanwhile
            continue
        if found == name:
            yield pid


def with_variable(name: str, value: str) -> Iterator[int]:
    """Processes that were started with this environment variable, whoever their parent is by now."""
    wanted = f"{name}={value}".encode()
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                found = wanted in file.read().split(b"\0")
        except OSError:  # ended meanwhile, or not ours to look at
            continue
        if found:
            yield pid


def kill_with_variable(name: str, value: str) -> None:
    """Kills them, and what they start meanwhile."""
    for _ in range(10):
        found = list(with_variable(name, value))
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return

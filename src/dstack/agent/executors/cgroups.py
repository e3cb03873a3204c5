"""Limits on the CPU and memory of process tasks, by the kernel's control groups, of version 1 or 2.

A task with a limit has a group of its own, in which each process of its job begins. Its supervisor stays outside,
so the kernel never kills it for memory that the job took. The groups of an agent's tasks are in one of the agent:

version 1   `<group of the agent>/dstack-<agent>/<task>`, in the tree of each controller
version 2   `<parent of that group>/dstack-<agent>/<task>`: beside the agent, as processes may not be in a group
            whose children have limits, so systemd could not start the agent again above the tasks that live

An agent that may not make groups (not root, `/sys/fs/cgroup` read-only) runs tasks without limits and says so.
File in the task's folder, written before its groups are made: `cgroups.json` `{"groups": [path]}`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
from typing import List, Tuple

from dstack.agent.files import read_json, remove, write_json
from dstack.agent.protocol import TaskSpec

MEMORY = "memory"
CPU = "cpu"
RECORD = "cgroups.json"
PERIOD_US = 100_000
MAKE_TRIES = 20
MIN_QUOTA_US = 1_000
"""The kernel takes no less."""
_GB, _MB = 1024**3, 1024**2
_PROBE = {MEMORY: _GB, CPU: 1.0}
_MAY_BE_MISSING = ("memory.memsw.limit_in_bytes", "memory.swap.max")
"""Where the kernel does not count swap."""


class Unavailable(Exception):
    """Groups cannot be made here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a controller's groups are: `base`, in which the agent makes one for its tasks, is `mount` or below."""

    controller: str
    version: int
    mount: str
    base: str


@dataclasses.dataclass(frozen=True)
class Group:
    """The group of one task: its folders by controller, which may be the same one; none: without limits."""

    places: Tuple[Place, ...] = ()
    name: str = ""
    memory_bytes: int = 0

    def folder(self, place: Place) -> str:
        return os.path.join(place.base, self.name)

    @property
    def folders(self) -> List[str]:
        return sorted({self.folder(place) for place in self.places})

    def enter(self) -> None:
        """Moves this process into it. Raises OSError."""
        for folder in self.folders:
            _write(folder, "cgroup.procs", "0")

    def ending(self) -> str:
        """How the kernel ended processes of it, for the user; empty when it did not."""
        for place in self.places:
            if place.controller == MEMORY and oom_kills(place.version, self.folder(place)):
                return memory_message(self.memory_bytes)
        return ""


class Cgroups:
    """The groups of one agent's tasks. `error` says in one line what cannot be limited here and why."""

    def __init__(self, agent_id: str, proc: str = "/proc/self") -> None:
        self._name = "dstack-" + agent_id[:8]
        self.places: List[Place] = []
        errors: List[str] = []
        cgroup, mounts = _read(proc, "cgroup"), _read(proc, "mountinfo")
        for controller in (MEMORY, CPU):
            try:
                place = find_place(controller, cgroup, mounts)
                self._probe(place)
                self.places.append(place)
            except Unavailable as error:
                errors.append(f"no limits on the {controller} of processes: {error}")
        self.error = "; ".join(errors)

    def _probe(self, place: Place) -> None:
        """Makes a group, sets a limit, lets a process enter. Raises Unavailable."""
        group = Group((place,), os.path.join(self._name, f"probe-{os.getpid()}"))
        try:
            _make(group, place, _PROBE[place.controller])
            _enter_in_child(group)
        except OSError as error:
            message = f"the agent cannot make control groups in {place.base} ({error.strerror})"
            raise Unavailable(message) from error
        finally:
            with contextlib.suppress(OSError):  # it was never made
                os.rmdir(group.folder(place))
            _remove_parent(group.folder(place))

    def make(self, spec: TaskSpec, folder: str) -> Group:
        """The group of the task in `folder` with its limits. Repeating it changes nothing. Raises OSError."""
        wanted = {MEMORY: float(spec.memory_bytes), CPU: spec.cpu}
        places = tuple(place for place in self.places if wanted[place.controller])
        group = Group(places, os.path.join(self._name, spec.id), spec.memory_bytes)
        if places:
            write_json(os.path.join(folder, RECORD), {"groups": group.folders})
        for place in places:
            _make(group, place, wanted[place.controller])
        return group


def find_place(controller: str, cgroup: str, mountinfo: str) -> Place:
    """From the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`. Raises Unavailable."""
    version, own = _own_group(controller, cgroup)
    for root, mount, kind, options in _mounts(mountinfo):
        inside = os.path.relpath(own, root)
        is_it = kind == "cgroup2" if version == 2 else kind == "cgroup" and controller in options
        if is_it and not inside.startswith(".."):
            folder = os.path.normpath(os.path.join(mount, inside))
            is_below = version == 1 or folder == mount
            return Place(controller, version, mount, folder if is_below else os.path.dirname(folder))
    raise Unavailable(f"no mount of the kernel's control groups (version {version}) has that of the agent, {own}")


def _own_group(controller: str, cgroup: str) -> Tuple[int, str]:
    """(version, path) of the agent's own group."""
    unified = ""
    for line in cgroup.splitlines():
        number, names, path = line.split(":", 2)
        if controller in names.split(","):
            return 1, path
        if number == "0" and not names:
            unified = path
    if not unified:
        raise Unavailable(f"the kernel has no {controller} controller")
    return 2, unified


def _mounts(mountinfo: str) -> List[Tuple[str, str, str, List[str]]]:
    """(root, mount point, file system, its options) of each mount."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        root, mount = (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text) for text in fields[3:5])
        found.append((root, mount, kind[0], kind[2].split(",")))
    return found


def limit(place: Place, amount: float) -> List[Tuple[str, str]]:
    """(file, content), in order, of a limit in bytes or cores. Swap is none: a job slows nobody else down."""
    if place.controller == MEMORY:
        size = str(int(amount))
        if place.version == 1:
            return [("memory.limit_in_bytes", size), ("memory.memsw.limit_in_bytes", size)]
        return [("memory.max", size), ("memory.swap.max", "0")]
    quota = max(int(amount * PERIOD_US), MIN_QUOTA_US)
    if place.version == 1:
        return [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
    return [("cpu.max", f"{quota} {PERIOD_US}")]


def oom_kills(version: int, folder: str) -> int:
    """How many processes the kernel has killed in a group for want of memory."""
    text = _read(folder, "memory.oom_control" if version == 1 else "memory.events")
    counts = dict(line.split() for line in text.splitlines())
    return int(counts.get("oom_kill", 0))  # kernels before 4.13 do not tell


def memory_message(limit_bytes: int) -> str:
    """What the user is told of a job that was killed for its memory; 0: it had no limit of its own."""
    if not limit_bytes:
        return "killed because the host had no memory left"
    size = f"{limit_bytes / _GB:g}GB" if limit_bytes >= _GB else f"{limit_bytes / _MB:g}MB"
    return f"killed because it used more memory than it may ({size})"


def remove_groups(folder: str) -> bool:
    """Kills what is left of the task in `folder` and removes its groups; False: it is still ending, try again."""
    record = read_json(os.path.join(folder, RECORD))
    if record is None:
        return True
    is_done = True
    for group in record["groups"]:
        for path, _, _ in os.walk(group, topdown=False):
            is_done = _remove_group(path) and is_done
        _remove_parent(group)
    if is_done:
        remove(os.path.join(folder, RECORD))
    return is_done


def _remove_group(path: str) -> bool:
    try:
        for pid in _read(path, "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGKILL)
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _enable(place: Place, folder: str) -> None:
    """Version 2: lets the children of `folder` have the controller; so must all above. Raises OSError."""
    if folder != place.mount:
        _enable(place, os.path.dirname(folder))
    if place.controller not in _read(folder, "cgroup.subtree_control").split():
        _write(folder, "cgroup.subtree_control", "+" + place.controller)


def _make(group: Group, place: Place, amount: float) -> None:
    """Makes the folders and sets the limit. Raises OSError."""
    for tries_left in reversed(range(MAKE_TRIES)):
        try:
            for path in (os.path.dirname(group.folder(place)), group.folder(place)):
                _make_folder(place, path)
            break
        except FileNotFoundError:  # the agent's group was removed, as the last task in it has just ended
            if not tries_left:
                raise
    for name, value in limit(place, amount):
        _set(group.folder(place), name, value)


def _make_folder(place: Place, path: str) -> None:
    if place.version == 2:
        _enable(place, os.path.dirname(path))
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)


def _remove_parent(group: str) -> None:
    with contextlib.suppress(OSError):  # other tasks are in it, or it is gone
        os.rmdir(os.path.dirname(group))


def _enter_in_child(group: Group) -> None:
    pid = os.fork()
    if not pid:
        status = errno.EIO
        try:
            group.enter()
            status = 0
        except OSError as error:
            status = error.errno or status
        finally:
            os._exit(status)
    status = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))


def _set(folder: str, name: str, value: str) -> None:
    try:
        _write(folder, name, value)
    except FileNotFoundError:
        if name not in _MAY_BE_MISSING:
            raise
    except OSError as error:
        if name != "cpu.cfs_quota_us" or error.errno != errno.EINVAL:
            raise  # else a group above has less already, and version 1 takes no more than that


def _write(folder: str, name: str, value: str) -> None:
    """In one system call: each is a command to the kernel."""
    descriptor = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name)) as file:
        return file.read()

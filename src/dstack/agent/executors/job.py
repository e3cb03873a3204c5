"""Starting a job's first process: where, as whom, with which environment, on which terminal."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pwd
import signal
import struct
import tempfile
import termios
import time
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from dstack.agent import nodes, processes
from dstack.agent.executors import equipment
from dstack.agent.executors.cgroups import Group
from dstack.agent.executors.ports import PortMover
from dstack.agent.protocol import TaskSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROWS_COLUMNS = (24, 80)
LINKS = "links"
"""File in the task's folder that lists the links made for its mounts."""


class StartError(Exception):
    """The job could not be started; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Account:
    """Who the job runs as."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


@dataclasses.dataclass(frozen=True)
class Place:
    """As whom a job runs and where; the paths are absolute."""

    account: Account
    root: str
    """The job's own folder, which relative working directories are relative to."""
    working_dir: str
    repo_dir: str
    hostfile: str
    path: str = DEFAULT_PATH
    """Where programs are looked for."""
    venv: Optional[str] = None
    """The virtual environment that the job gets."""
    ssh_folder: str = ""
    """What it reaches the other nodes of its replica with."""

    def variables(self) -> Dict[str, str]:
        """What the job is told of it."""
        venv = {} if self.venv is None else {"DSTACK_VENV_DIR": self.venv, "VIRTUAL_ENV": self.venv}
        return {
            "DSTACK_WORKING_DIR": self.working_dir,
            "DSTACK_REPO_DIR": self.repo_dir,
            "DSTACK_MPI_HOSTFILE": self.hostfile,
            **venv,
        }


@dataclasses.dataclass(frozen=True)
class Command:
    """A program to run: `arguments` begin with its own name."""

    program: str
    arguments: List[str]
    environment: Dict[str, str]
    working_dir: str
    account: Account


@dataclasses.dataclass(frozen=True)
class StartedJob:
    pid: int
    master: int
    working_dir: str
    username: str

    def facts(self) -> Dict[str, Any]:
        """What is written down of it."""
        return {
            "pid": self.pid,
            "working_dir": self.working_dir,
            "username": self.username,
            "started_at": time.time(),
        }


def prepare(spec: TaskSpec, folder: str) -> Place:
    """Finds out as whom and where the job runs, and makes its folders. Raises StartError in words for the user."""
    if not spec.commands:
        raise StartError("the job has no command")
    account = find_account(spec.user)
    base = folder if account.uid == os.geteuid() else _make_foreign_base(spec.id)
    root = os.path.join(base, "work")
    working_dir = _absolute(spec.working_dir or "", root, account)
    repo_dir = _absolute(spec.repo_dir or "", working_dir, account)
    hostfile = os.path.join(base, "hostfile")
    try:
        _write_hostfile(hostfile, spec.hostfile, account)
        if base != folder:
            os.chown(base, account.uid, account.gid)
        _make_folders(working_dir, account)
    except OSError as error:
        raise StartError(f"the working directory {working_dir} cannot be made: {error.strerror}") from error
    path, venv = _equip(spec, folder, base, account)
    return Place(account, root, working_dir, repo_dir, hostfile, path, venv, _ssh_folder(base))


def _equip(spec: TaskSpec, folder: str, base: str, account: Account) -> Tuple[str, Optional[str]]:
    """The search path, and where the virtual environment will be; mounted folders appear."""
    path = spec.env.get("PATH") or base_environment(account)["PATH"]
    try:
        equipment.link_mounts(spec.mounts, os.path.join(folder, LINKS))
        if spec.nvcc:
            path = equipment.cuda_path(path)
    except equipment.Missing as error:
        raise StartError(str(error)) from error
    if spec.ssh:
        path = os.path.join(_ssh_folder(base), nodes.PROGRAMS) + os.pathsep + path
    if not spec.python:
        return path, None
    venv = os.path.join(base, "venv")
    return os.path.join(venv, "bin") + os.pathsep + path, venv


def _ssh_folder(base: str) -> str:
    return os.path.join(base, "ssh")


def environment_of(spec: TaskSpec, place: Place, marks: Dict[str, str]) -> Dict[str, str]:
    """Of the job, and of what runs beside it."""
    given = {**base_environment(place.account), **place.variables(), **spec.env, **marks}
    return {**given, "PWD": place.working_dir, "PATH": place.path}


def start(spec: TaskSpec, place: Place, marks: Dict[str, str], mover: PortMover, group: Group) -> StartedJob:
    """Starts the job in `group`; `mover` is told of its ports. Raises StartError in words for the user."""
    account, working_dir = place.account, place.working_dir
    environment = environment_of(spec, place, marks)
    command = Command(spec.commands[0], spec.commands, environment, working_dir, account)
    master, slave = _terminal(account)
    try:
        pid = spawn(command, (slave, slave, slave), True, mover, group)
    except StartError:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return StartedJob(pid, master, working_dir, account.name)


def spawn(command: Command, files: Tuple[int, int, int], on_terminal: bool, mover: PortMover, group: Group) -> int:
    """Starts a program in a session of its own, with input, output and error output. Raises StartError."""
    reading, writing = os.pipe()
    mover.prepare()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _become(command, files, on_terminal, writing, parent, mover, group)
    os.close(writing)
    mover.receive()
    with open(reading, "rb") as pipe:
        failure = pipe.read()
    if failure:
        os.waitpid(pid, 0)
        raise StartError(json.loads(failure))
    return pid


def find_account(user: Optional[str]) -> Account:
    """`name`, `uid`, `name:group` or `uid:gid`; without one, the agent's own. Raises StartError."""
    if not user:
        return own_account()
    name, _, group = user.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell)
    except KeyError:
        if not name.isdigit():
            raise StartError(f"there is no user {name!r} on the host") from None
        account = Account(name, int(name), int(name), "/", "/bin/sh")
    if group:
        account = dataclasses.replace(account, gid=_group_id(group))
    if account.uid != os.geteuid() and os.geteuid() != 0:
        message = "the job asks for user {!r}, but the agent runs as {!r} and may not change that; "
        raise StartError((message + "leave `user` out or run the agent as root").format(name, own_account().name))
    return account


def own_account() -> Account:
    """Who the agent runs as."""
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), uid, os.getegid(), os.environ.get("HOME", "/"), "/bin/sh")
    return Account(entry.pw_name, uid, os.getegid(), os.environ.get("HOME") or entry.pw_dir, entry.pw_shell)


def _group_id(group: str) -> int:
    import grp  # noqa: PLC0415 - rarely needed, and every supervisor would carry it

    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise StartError(f"there is no group {group!r} on the host") from None


def base_environment(account: Account) -> Dict[str, str]:
    """What every job gets; nothing else of the agent's own environment reaches it."""
    return {
        "PATH": os.environ.get("PATH", DEFAULT_PATH),
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell or "/bin/sh",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "TERM": "xterm-256color",
    }


def foreign_base(task_id: str) -> str:
    """Where a task of another user than the agent's has its folders: the agent's own are closed to it."""
    return os.path.join(tempfile.gettempdir(), f"dstack-{task_id}")


def _make_foreign_base(task_id: str) -> str:
    path = foreign_base(task_id)
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise StartError(f"the job's folder {path} cannot be made: {error.strerror}") from error
    return path


def _absolute(wanted: str, base: str, account: Account) -> str:
    if wanted == "~" or wanted.startswith("~/"):
        wanted = account.home + wanted[1:]
    return os.path.normpath(os.path.join(base, wanted))


def _write_hostfile(path: str, content: str, account: Account) -> None:
    with open(path, "w") as file:
        file.write(content)
    if os.geteuid() == 0:
        os.chown(path, account.uid, account.gid)


def _make_folders(path: str, account: Account) -> None:
    """Makes the folders that are missing, each belonging to the job's user."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        _make_folders(parent, account)
    os.mkdir(path)
    if os.geteuid() == 0:
        os.chown(path, account.uid, account.gid)


def _terminal(account: Account) -> Tuple[int, int]:
    """A pseudo-terminal that passes output on unchanged; its reading side does not block."""
    master, slave = os.openpty()
    mode = termios.tcgetattr(slave)
    mode[1] &= ~termios.OPOST
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *ROWS_COLUMNS, 0, 0))
    if os.geteuid() == 0:
        os.fchown(slave, account.uid, account.gid)
    os.set_blocking(master, False)
    return master, slave


def _become(
    command: Command,
    files: Tuple[int, int, int],
    on_terminal: bool,
    report: int,
    parent: int,
    mover: PortMover,
    group: Group,
) -> NoReturn:
    """In the forked child: turns it into the program, or tells through `report` why not."""
    message = "the agent could not start it"
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        if on_terminal:
            fcntl.ioctl(files[0], termios.TIOCSCTTY, 0)
        for descriptor, file in enumerate(files):
            os.dup2(file, descriptor)
        message = "it cannot be put under its limits on CPU and memory"
        group.enter()
        message = f"the user {command.account.name} cannot be taken on"
        take_identity(command.account)
        processes.die_with_parent(parent)
        message = f"the working directory {command.working_dir} cannot be entered"
        os.chdir(command.working_dir)
        message = f"the command {command.program!r} cannot be run"
        _default_signals()
        mover.install()
        os.execvpe(command.program, command.arguments, command.environment)
    except OSError as error:
        os.write(report, json.dumps(f"{message}: {error.strerror}").encode())
    finally:
        os._exit(127)


def take_identity(account: Account) -> None:
    """Turns this process into one of the account. Raises OSError."""
    if os.geteuid() == 0 and (account.uid != 0 or account.gid != os.getegid()):
        os.initgroups(account.name, account.gid)
        os.setgid(account.gid)
        os.setuid(account.uid)


def _default_signals() -> None:
    """The agent may have been started with signals ignored; a job has to see them all."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)

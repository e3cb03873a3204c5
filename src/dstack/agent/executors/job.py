"""Starting a job's first process: where, as whom, with which environment, on which terminal."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pwd
import signal
import struct
import tarfile
import termios
import time
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from dstack.agent import processes
from dstack.agent.protocol import TaskSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROWS_COLUMNS = (24, 80)


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


def start(spec: TaskSpec, folder: str, marks: Dict[str, str]) -> StartedJob:
    """Starts the job. Raises StartError in words for the user."""
    if not spec.commands:
        raise StartError("the job has no command")
    account = find_account(spec.user)
    working_dir = _working_dir(spec, folder, account)
    _unpack(spec, folder, working_dir, account)
    environment = {**base_environment(account), **spec.env, **marks, "PWD": working_dir}
    master, slave = _terminal(account)
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _become_job(spec.commands, environment, working_dir, account, slave, writing, parent)
    os.close(slave)
    os.close(writing)
    with open(reading, "rb") as pipe:
        failure = pipe.read()
    if failure:
        os.waitpid(pid, 0)
        os.close(master)
        raise StartError(json.loads(failure))
    return StartedJob(pid, master, working_dir, account.name)


def find_account(user: Optional[str]) -> Account:
    """`name`, `uid`, `name:group` or `uid:gid`; without one, the agent's own. Raises StartError."""
    if not user:
        return _own_account()
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
        raise StartError((message + "leave `user` out or run the agent as root").format(name, _own_account().name))
    return account


def _own_account() -> Account:
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


def _working_dir(spec: TaskSpec, folder: str, account: Account) -> str:
    wanted = spec.working_dir or ""
    if wanted == "~" or wanted.startswith("~/"):
        wanted = account.home + wanted[1:]
    path = os.path.join(folder, "work", wanted) if not os.path.isabs(wanted) else wanted
    path = os.path.normpath(path)
    try:
        _make_folders(path, account)
    except OSError as error:
        raise StartError(f"the working directory {path} cannot be made: {error.strerror}") from error
    return path


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


def _unpack(spec: TaskSpec, folder: str, working_dir: str, account: Account) -> None:
    for file in spec.files:
        name = file["name"]
        target = os.path.normpath(os.path.join(working_dir, os.path.expanduser(file["path"])))
        try:
            _make_folders(target, account)
            _unpack_archive(os.path.join(folder, "files", name), target, account)
        except FileNotFoundError as error:
            raise StartError(f"the file {name!r} was not uploaded to the host") from error
        except (OSError, tarfile.TarError, ValueError) as error:
            raise StartError(f"the archive {name!r} cannot be unpacked into {target}: {error}") from error


def _unpack_archive(path: str, target: str, account: Account) -> None:
    with tarfile.open(path) as archive:
        members = []
        for member in archive.getmembers():
            inside = os.path.realpath(os.path.join(target, member.name))
            if os.path.commonpath([inside, os.path.realpath(target)]) != os.path.realpath(target):
                raise ValueError(f"it has an entry outside of its folder: {member.name}")
            if os.geteuid() == 0:
                member.uid, member.gid, member.uname, member.gname = account.uid, account.gid, "", ""
            members.append(member)
        if hasattr(tarfile, "tar_filter"):
            archive.extraction_filter = staticmethod(tarfile.tar_filter)
        archive.extractall(target, members)


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


def _become_job(
    commands: List[str],
    environment: Dict[str, str],
    working_dir: str,
    account: Account,
    slave: int,
    report: int,
    parent: int,
) -> NoReturn:
    """In the forked child: turns it into the job, or tells through `report` why not."""
    message = "the agent could not start it"
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for descriptor in (0, 1, 2):
            os.dup2(slave, descriptor)
        message = f"the user {account.name} cannot be taken on"
        _take_identity(account)
        processes.die_with_parent(parent)
        message = f"the working directory {working_dir} cannot be entered"
        os.chdir(working_dir)
        message = f"the command {commands[0]!r} cannot be run"
        _default_signals()
        os.execvpe(commands[0], commands, environment)
    except OSError as error:
        os.write(report, json.dumps(f"{message}: {error.strerror}").encode())
    finally:
        os._exit(127)


def _take_identity(account: Account) -> None:
    if os.geteuid() == 0 and (account.uid != 0 or account.gid != os.getegid()):
        os.initgroups(account.name, account.gid)
        os.setgid(account.gid)
        os.setuid(account.uid)


def _default_signals() -> None:
    """The agent may have been started with signals ignored; a job has to see them all."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)

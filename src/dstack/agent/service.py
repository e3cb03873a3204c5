"""Keeps the agent running on a host: `agent.pyz install --dir DIR` and `agent.pyz uninstall --dir DIR`.

Where systemd is the init and we are root it is a unit; elsewhere a shell loop starts it again whenever it ends.
Both leave the jobs alone when the agent is stopped. Repeating a call changes nothing; a newer archive replaces the
old one and the agent is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

from dstack.agent.files import read_json, remove, write_atomically, write_json
from dstack.agent.http import short_path

UNIT = "dstack-agent.service"
UNIT_FOLDER = "/etc/systemd/system"
SYSTEMD_MARK = "/run/systemd/system"
START_SECONDS = 20.0
END_SECONDS = 10.0
_UNIT_TEXT = """[Unit]
Description=dstack agent
After=network.target docker.service

[Service]
ExecStart={command}
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""
_LOOP = 'while :; do "$@" >>"$0" 2>&1; [ $? -eq 3 ] && exit 3; sleep 0.3; done'


class ServiceError(Exception):
    """The agent could not be installed; the text is for the user."""


def main(arguments: List[str]) -> int:
    """Prints what was done as JSON; the exit code is 1 when it could not be done."""
    parser = argparse.ArgumentParser(prog="dstack-agent", description="Keeps the agent running on this host.")
    parser.add_argument("action", choices=["install", "uninstall"])
    parser.add_argument("--dir", required=True, help="folder of the agent")
    parser.add_argument("--socket-user", default="", help="who, beside the agent's user, may connect to it")
    parser.add_argument("--docker-socket", default="", help="passed on to the agent")
    options = parser.parse_args(arguments)
    try:
        act = install if options.action == "install" else uninstall
        told, code = act(options), 0
    except (ServiceError, OSError) as error:
        told, code = {"error": str(error)}, 1
    sys.stdout.write(json.dumps(told) + "\n")
    return code


def install(options: argparse.Namespace) -> Dict[str, Any]:
    """Copies this archive into the folder, has the agent run from it, and waits until it answers."""
    folder = os.path.abspath(options.dir)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o711 if options.socket_user else 0o700)
    is_new = _copy_archive(os.path.join(folder, "agent.pyz"))
    command = _command(folder, options)
    is_changed = _write_command(folder, command) or is_new
    if uses_systemd():
        _start_unit(command, is_changed)
    else:
        _start_loop(folder, command, is_changed)
    _wait_until_it_answers(folder)
    return {
        "socket": os.path.join(folder, "agent.sock"),
        "changed": is_changed,
        "kept_by": "systemd" if uses_systemd() else "loop",
    }


def uninstall(options: argparse.Namespace) -> Dict[str, Any]:
    """Ends the agent and removes all that `install` made. Tasks have to be ended before."""
    folder = os.path.abspath(options.dir)
    unit = os.path.join(UNIT_FOLDER, UNIT)
    if uses_systemd() and os.path.exists(unit):
        _systemctl("disable", "--now", UNIT)
        remove(unit)
        _systemctl("daemon-reload")
    _end(_loop_pid(folder))
    _end(_agent_pid(folder))
    for name in ("agent.pyz", "command.json", "loop.json"):
        remove(os.path.join(folder, name))
    return {"removed": True}


def uses_systemd() -> bool:
    """Whether systemd is this host's init and takes orders from us."""
    return os.geteuid() == 0 and os.path.isdir(SYSTEMD_MARK)


def _copy_archive(path: str) -> bool:
    """False when it is there already."""
    content = _read(sys.argv[0])
    if os.path.exists(path) and digest_of(path) == _digest(content):
        return False
    write_atomically(path, content)
    os.chmod(path, 0o755)
    return True


def digest_of(path: str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return _digest(_read(path))


def _digest(content: bytes) -> str:
    import hashlib  # noqa: PLC0415 - brings OpenSSL with it, which the agent at work does without

    return hashlib.sha256(content).hexdigest()


def _command(folder: str, options: argparse.Namespace) -> List[str]:
    command = [sys.executable, os.path.join(folder, "agent.pyz"), "--dir", folder]
    if options.socket_user:
        pwd.getpwnam(options.socket_user)
        command += ["--socket-user", options.socket_user]
    if options.docker_socket:
        command += ["--docker-socket", options.docker_socket]
    return command


def _write_command(folder: str, command: List[str]) -> bool:
    """False when it is the one on record."""
    path = os.path.join(folder, "command.json")
    if read_json(path) == {"command": command}:
        return False
    write_json(path, {"command": command})
    return True


def _start_unit(command: List[str], is_changed: bool) -> None:
    path = os.path.join(UNIT_FOLDER, UNIT)
    text = _UNIT_TEXT.format(command=" ".join(shlex.quote(part) for part in command)).encode()
    if not os.path.exists(path) or _read(path) != text:
        write_atomically(path, text)
        os.chmod(path, 0o644)
        _systemctl("daemon-reload")
        _systemctl("enable", UNIT)
    _systemctl("restart" if is_changed else "start", UNIT)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        told = done.stdout.decode(errors="replace").strip()
        raise ServiceError(f"systemctl {' '.join(arguments)} failed: {told or done.returncode}")


def _start_loop(folder: str, command: List[str], is_changed: bool) -> None:
    """The loop is a session of its own. Where it runs, a changed agent is ended and it starts the new one."""
    pid, known = _loop_pid(folder), read_json(os.path.join(folder, "loop.json")) or {}
    if known.get("command") != command:
        _end(pid)
        pid = None
    if is_changed:
        _end(_agent_pid(folder))
    if pid is not None:
        return
    process = subprocess.Popen(
        ["/bin/sh", "-c", _LOOP, os.path.join(folder, "agent.log"), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    write_json(os.path.join(folder, "loop.json"), {"pid": process.pid, "command": command})


def _loop_pid(folder: str) -> Optional[int]:
    pid = (read_json(os.path.join(folder, "loop.json")) or {}).get("pid")
    return pid if isinstance(pid, int) and _names(pid, os.path.join(folder, "agent.log")) else None


def _agent_pid(folder: str) -> Optional[int]:
    try:
        with open(os.path.join(folder, "agent.lock"), encoding="ascii") as file:
            pid = int(file.read() or 0)
    except (OSError, ValueError):
        return None
    return pid if pid and _names(pid, folder) else None


def _names(pid: int, path: str) -> bool:
    """Whether that process lives and has the path among its arguments: numbers are used again."""
    try:
        arguments = _read(f"/proc/{pid}/cmdline").split(b"\0")
    except OSError:
        return False
    return os.fsencode(path) in arguments


def _end(pid: Optional[int]) -> None:
    """SIGTERM, and SIGKILL when that is not enough."""
    if pid is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + END_SECONDS
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not _runs(pid):
            return


def _runs(pid: int) -> bool:
    """False for one that has ended, though a host's init may be slow to take note."""
    try:
        stat = _read(f"/proc/{pid}/stat")
    except OSError:
        return False
    return stat.rpartition(b") ")[2][:1] not in (b"Z", b"X")


def _wait_until_it_answers(folder: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(os.path.join(folder, "agent.sock")):
        if time.monotonic() > deadline:
            raise ServiceError(f"the agent does not answer on {folder}/agent.sock. It said: {_last_words(folder)}")
        time.sleep(0.02)


def _answers(path: str) -> bool:
    try:
        name, descriptor = short_path(path)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(name)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _last_words(folder: str) -> str:
    if uses_systemd():
        command = ["journalctl", "-u", UNIT, "-n", "3", "--no-pager", "-o", "cat"]
        told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
    else:
        path = os.path.join(folder, "agent.log")
        told = _read(path)[-500:] if os.path.exists(path) else b""
    return told.decode(errors="replace").strip() or "nothing"

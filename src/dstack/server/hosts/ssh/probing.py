"""What a host is like, found out in one command: any Python of ours or newer runs a script that prints JSON."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dstack.core.errors import HostUnfit, Unreachable
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

NEEDED_BYTES = 100 * 2**20
"""Free space for the agent and the logs of jobs that are not fetched yet."""
_PYTHONS = ["python3", *(f"python3.{minor}" for minor in range(14, 7, -1)), "/usr/libexec/platform-python"]
_FIND_PYTHON = (
    f"for p in {' '.join(_PYTHONS)}; do "
    '"$p" -c "import sys; sys.exit(sys.version_info < (3, 8))" 2>/dev/null && exec "$p" -; '
    "done; uname -s; exit 41"
)
NO_PYTHON = 41
_SCRIPT = """
import json, os, platform, pwd, shutil, socket, subprocess, sys
def may_sudo():
    try:
        done = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
def docker():
    if not os.path.exists("/var/run/docker.sock"):
        return "absent"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect("/var/run/docker.sock")
        except PermissionError:
            return "denied"
        except OSError:
            return "down"
    return "usable"
is_root = os.geteuid() == 0
as_root = is_root or may_sudo()
home = os.path.expanduser("~")
folder = "/var/lib/dstack" if as_root else os.path.join(home, ".dstack", "agent")
at = folder
while not os.path.exists(at):
    at = os.path.dirname(at)
print(json.dumps({
    "system": platform.system(), "python": sys.executable, "user": pwd.getpwuid(os.geteuid()).pw_name,
    "is_root": is_root, "as_root": as_root, "folder": folder, "docker": docker(),
    "free_bytes": shutil.disk_usage(at).free,
}))
"""


@dataclass(frozen=True)
class HostProbe:
    """`folder`: where the agent goes. `as_root`: it can run as root, by `sudo` unless the login `is_root`.
    `docker`: `usable`, `absent`, `denied` (to this user) or `down`."""

    system: str
    python: str
    user: str
    is_root: bool
    as_root: bool
    folder: str
    docker: str
    free_bytes: int

    @property
    def sudo(self) -> str:
        """What a command that needs root begins with."""
        return "" if self.is_root or not self.as_root else "sudo -n "


async def probe(connection: asyncssh.SSHClientConnection, target: SSHTarget) -> HostProbe:
    """Raises HostUnfit for a host that cannot run jobs, with what would make it fit."""
    done = await connection.run(f"exec /bin/sh -c {shlex.quote(_FIND_PYTHON)}", input=_SCRIPT)
    if done.exit_status is None:
        raise Unreachable(f"The connection to {target} broke while it was looked at")
    if done.exit_status == NO_PYTHON:
        system = str(done.stdout).strip()
        if system != "Linux":
            raise HostUnfit(f"{target} runs {system or 'an unknown system'}; dstack needs Linux")
        raise HostUnfit(f"{target} has no Python 3.8 or newer; install python3 there")
    try:
        found: dict[str, Any] = json.loads(str(done.stdout).strip().splitlines()[-1])
    except (ValueError, IndexError):
        told = (str(done.stderr) or str(done.stdout)).strip()[-300:]
        raise HostUnfit(f"{target} does not run commands as expected: {told or done.exit_status}") from None
    return checked(HostProbe(**found), target)


def checked(found: HostProbe, target: SSHTarget) -> HostProbe:
    """Raises HostUnfit."""
    if found.system != "Linux":
        raise HostUnfit(f"{target} runs {found.system}; dstack needs Linux")
    if found.free_bytes < NEEDED_BYTES:
        free, needed = found.free_bytes // 2**20, NEEDED_BYTES // 2**20
        raise HostUnfit(
            f"The disk of {target} is too full: {free} MiB are free for {found.folder}, {needed} MiB are needed"
        )
    if found.docker == "denied" and not found.as_root:
        raise HostUnfit(
            f"{found.user} may not use Docker on {target} and has no passwordless sudo; "
            f"add it to the docker group or allow sudo"
        )
    return found

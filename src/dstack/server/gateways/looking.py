"""What a gateway host is like, found out in one command."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dstack.core.errors import HostUnfit, Unreachable
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

_FIND_PYTHON = (
    "for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do "
    '"$p" -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null && exec "$p" -; '
    "done; uname -s; exit 41"
)
NO_PYTHON = 41
_SCRIPT = """
import json, os, platform, pwd, shutil, subprocess, sys, sysconfig
def may_sudo():
    try:
        done = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
def has(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True
path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
folder = os.path.expanduser("~/dstack")
def read(name):
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read().strip()
    except OSError:
        return None
active = read("version")
print(json.dumps({
    "system": platform.system(), "user": pwd.getpwuid(os.geteuid()).pw_name, "python": sys.executable,
    "platform": "%d.%d %s" % (*sys.version_info[:2], sysconfig.get_platform()),
    "is_root": os.geteuid() == 0, "as_root": os.geteuid() == 0 or may_sudo(), "folder": folder,
    "has_venv": has("venv") and has("ensurepip"), "has_systemd": os.path.isdir("/run/systemd/system"),
    "missing": [name for name in ("nginx", "certbot", "openssl", "ssh") if shutil.which(name, path=path) is None],
    "has_apt": shutil.which("apt-get", path=path) is not None,
    "active": active, "source": active and read(active + "/source"),
}))
"""
PACKAGES = {"nginx": "nginx", "certbot": "certbot", "openssl": "openssl", "ssh": "openssh-client"}


@dataclass(frozen=True)
class GatewayHost:
    """`platform`: see `package.platform`. `missing`: programs that are not there. `active`: `blue` or
    `green`, the environment in use; `source`: what was installed there."""

    system: str
    user: str
    python: str
    platform: str
    is_root: bool
    as_root: bool
    folder: str
    has_venv: bool
    has_systemd: bool
    missing: list[str]
    has_apt: bool
    active: str | None
    source: str | None

    @property
    def sudo(self) -> str:
        return "" if self.is_root else "sudo -n "

    @property
    def packages(self) -> list[str]:
        """Of the system, that have to be installed."""
        return [PACKAGES[name] for name in self.missing] + ([] if self.has_venv else ["python3-venv"])


async def look(connection: asyncssh.SSHClientConnection, target: SSHTarget) -> GatewayHost:
    """Raises HostUnfit for a host that can carry no gateway, with what would make it fit."""
    done = await connection.run(f"exec /bin/sh -c {shlex.quote(_FIND_PYTHON)}", input=_SCRIPT)
    if done.exit_status is None:
        raise Unreachable(f"The connection to {target} broke while it was looked at")
    if done.exit_status == NO_PYTHON:
        system = str(done.stdout).strip()
        if system != "Linux":
            raise HostUnfit(f"{target} runs {system or 'an unknown system'}; a gateway needs Linux")
        raise HostUnfit(f"{target} has no Python 3.10 or newer; install python3 and python3-venv there")
    try:
        found: dict[str, Any] = json.loads(str(done.stdout).strip().splitlines()[-1])
    except (ValueError, IndexError):
        told = (str(done.stderr) or str(done.stdout)).strip()[-300:]
        raise HostUnfit(f"{target} does not run commands as expected: {told or done.exit_status}") from None
    return checked(GatewayHost(**found), target)


def checked(found: GatewayHost, target: SSHTarget) -> GatewayHost:
    """Raises HostUnfit."""
    if found.system != "Linux":
        raise HostUnfit(f"{target} runs {found.system}; a gateway needs Linux")
    if not found.as_root:
        raise HostUnfit(f"{found.user} may not use sudo without a password on {target}; a gateway needs root")
    if not found.has_systemd:
        raise HostUnfit(f"{target} does not run systemd, which keeps the gateway app and nginx up")
    if found.packages and not found.has_apt:
        raise HostUnfit(f"{target} lacks {', '.join(found.packages)} and has no apt-get: install them there")
    return found

"""Puts the gateway on a host, replaces it by this server's version, and takes it off. Every step may be repeated.

There are two environments, `blue` and `green`: a version is installed into the one that is not in use, and the app
returns to the other one when it does not answer from there.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dstack
from dstack.core.errors import HostUnfit, Unreachable
from dstack.server.gateways import looking, package
from dstack.server.gateways.client import APP_PORT, GatewayClient
from dstack.server.gateways.looking import GatewayHost
from dstack.server.hosts.ssh import connecting
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

logger = logging.getLogger(__name__)

UNIT = "dstack.gateway.service"
RUNTIME_DIR = "/run/dstack-gateway"
COMMAND_SECONDS = 540.0
"""Of packages being installed."""
ANSWERS_WITHIN_S = 40.0
PAUSE_S = 0.3
MAX_TOLD_CHARACTERS = 400
_START = """\
#!/bin/sh
cd "$(dirname "$0")" || exit 1
exec "./$(cat version)/bin/python" -m dstack.proxy.gateway.main --dir "$PWD" --port {port}
"""
_UNIT = """\
[Unit]
Description=dstack gateway
After=network-online.target nginx.service
Wants=network-online.target

[Service]
User={user}
Group=www-data
ExecStart=/bin/sh {folder}/start.sh
Restart=always
RestartSec=5
LimitNOFILE=65535
RuntimeDirectory=dstack-gateway
RuntimeDirectoryMode=0710
RuntimeDirectoryPreserve=yes

[Install]
WantedBy=multi-user.target
"""
_APT = """\
export DEBIAN_FRONTEND=noninteractive
{sudo}apt-get -q update >/dev/null 2>&1
{sudo}apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends {packages} 2>&1
"""
_SET_UP = """\
set -e
mkdir -p {folder}/server-connections {folder}/packages
chmod 700 {folder}/server-connections
cat > {folder}/start.sh
"""
_SERVE = """\
set -e
cat | {sudo}tee /etc/systemd/system/{unit} >/dev/null
{sudo}rm -f /etc/nginx/sites-enabled/default
{sudo}systemctl daemon-reload
{sudo}systemctl -q enable {unit}
{sudo}systemctl -q is-active nginx || {sudo}systemctl -q enable --now nginx
{switch}
"""
_SWITCH = "printf %s {colour} > {folder}/version; {sudo}systemctl restart {unit}"
_INSTALL = """\
set -e
cd {folder}
[ -x {colour}/bin/pip ] || {python} -m venv --clear {colour}
rm -f {colour}/source
{colour}/bin/pip install -q --disable-pip-version-check --retries 1 --timeout 15 {what} 2>&1
"""
_UNINSTALL = """\
{sudo}systemctl -q disable --now {unit} 2>/dev/null
{sudo}rm -rf /etc/systemd/system/{unit} {runtime} {runtime}-auth
{sudo}systemctl daemon-reload
{sudo}rm -f /etc/nginx/sites-enabled/00-dstack.conf /etc/nginx/sites-enabled/443-*.conf
{sudo}rm -f /var/log/nginx/dstack.access.log*
if {sudo}systemctl -q is-active nginx; then {sudo}systemctl reload nginx; fi
rm -rf {folder}
"""


@dataclass(frozen=True)
class Wanted:
    """`package_url`: what to install in place of this server's own version."""

    package_url: str | None = None

    @property
    def source(self) -> str:
        return self.package_url or f"dstack {dstack.__version__}"

    def is_served_by(self, version: str | None) -> bool:
        """`version`: of the app that answers; None: none does."""
        return version is not None and (self.package_url is not None or version == dstack.__version__)


async def ensure_installed(
    connection: asyncssh.SSHClientConnection, target: SSHTarget, wanted: Wanted
) -> tuple[str, GatewayHost]:
    """The gateway app of the wanted version answers when this returns. Its version and what the host is like.

    Raises HostError kinds; when it was there in another version, that one goes on.
    """
    async with connecting.translated(target):
        host = await looking.look(connection, target)
        version = await _version(connection)
        if version is not None and wanted.is_served_by(version) and host.source == wanted.source:
            return version, host
        await _install_packages(connection, target, host)
        colour = "green" if host.active == "blue" else "blue"
        await _set_up(connection, target, host)
        await _install(connection, target, host, colour, wanted)
        return await _switch(connection, target, host, colour, wanted), host


async def found(connection: asyncssh.SSHClientConnection, target: SSHTarget) -> tuple[GatewayHost, str]:
    """What is there, left as it is. Raises Unreachable when no gateway app answers."""
    async with connecting.translated(target):
        host = await looking.look(connection, target)
        return host, await GatewayClient(connection).version()


async def uninstall(connection: asyncssh.SSHClientConnection, target: SSHTarget) -> None:
    """Nothing of the gateway is left; packages of the system, and certificates, stay. Raises HostError kinds."""
    async with connecting.translated(target):
        host = await looking.look(connection, target)
        places = {"unit": UNIT, "sudo": host.sudo, "folder": shlex.quote(host.folder), "runtime": RUNTIME_DIR}
        await run(connection, target, _UNINSTALL.format(**places))


async def _install_packages(
    connection: asyncssh.SSHClientConnection, target: SSHTarget, host: GatewayHost
) -> None:
    if not host.packages:
        return
    packages = " ".join(host.packages)
    try:
        await run(connection, target, _APT.format(sudo=host.sudo and "sudo -n -E ", packages=packages))
    except HostUnfit as error:
        raise HostUnfit(f"apt-get could not install {packages} on {target}: {error.detail}") from error


async def _set_up(connection: asyncssh.SSHClientConnection, target: SSHTarget, host: GatewayHost) -> None:
    script = _SET_UP.format(folder=shlex.quote(host.folder))
    await run(connection, target, script, _START.format(port=APP_PORT).encode())


async def _install(
    connection: asyncssh.SSHClientConnection, target: SSHTarget, host: GatewayHost, colour: str, wanted: Wanted
) -> None:
    folder = shlex.quote(host.folder)
    if wanted.package_url is not None:
        what = shlex.quote(f"dstack[{package.EXTRA}] @ {wanted.package_url}")
        await _pip(connection, target, host, colour, what)
    else:
        wheel = await asyncio.to_thread(package.own_wheel)
        await run(
            connection, target, f"rm -rf {folder}/packages/*; cat > {folder}/packages/{wheel.name}", wheel.content
        )
        what = f"--force-reinstall --no-deps packages/{wheel.name}"
        own = f"'packages/{wheel.name}[{package.EXTRA}]'"
        try:
            await _pip(connection, target, host, colour, own)
        except HostUnfit as error:
            await _bring_wheelhouse(connection, target, host, error)
            await _pip(connection, target, host, colour, f"--no-index --find-links packages {own}")
        await _pip(connection, target, host, colour, f"--no-index {what}")
    await run(
        connection, target, f"cat > {folder}/{colour}/source; rm -rf {folder}/packages", wanted.source.encode()
    )


async def _pip(
    connection: asyncssh.SSHClientConnection, target: SSHTarget, host: GatewayHost, colour: str, what: str
) -> None:
    places = {"folder": shlex.quote(host.folder), "python": shlex.quote(host.python)}
    try:
        await run(connection, target, _INSTALL.format(**places, colour=colour, what=what))
    except HostUnfit as error:
        raise HostUnfit(
            f"pip could not install the gateway on {target}: {error.detail}", detail=error.detail
        ) from error


async def _bring_wheelhouse(
    connection: asyncssh.SSHClientConnection, target: SSHTarget, host: GatewayHost, error: HostUnfit
) -> None:
    """For a host that has no package index, of all that this server itself has installed."""
    logger.info("%s takes no packages from an index, the server brings its own: %s", target, error.detail)
    own = package.platform()
    if host.platform != own:
        raise HostUnfit(
            f"{target} reaches no package index, and the packages of this server (Python {own}) do not fit its "
            f"Python ({host.platform}): give it an index in pip's configuration; pip says: {error.detail}"
        ) from error
    archive = await asyncio.to_thread(package.wheelhouse)
    await run(connection, target, f"tar -C {shlex.quote(host.folder)}/packages -x", archive)


async def _switch(
    connection: asyncssh.SSHClientConnection, target: SSHTarget, host: GatewayHost, colour: str, wanted: Wanted
) -> str:
    """Has the app run from that environment; from the one before when it does not answer from there."""
    places = {"folder": shlex.quote(host.folder), "sudo": host.sudo, "unit": UNIT}
    switch = _SWITCH.format(**places, colour=colour)
    unit = _UNIT.format(user=host.user, folder=host.folder)
    await run(connection, target, _SERVE.format(sudo=host.sudo, unit=UNIT, switch=switch), unit.encode())
    version = await _answers(connection, target, wanted)
    if version is not None:
        return version
    log = await run(connection, target, f"{host.sudo}journalctl -q -u {UNIT} -n 5 -o cat --no-pager || true")
    why = f"The gateway app does not answer on {target}: {_told(log) or 'its journal says nothing'}"
    if host.active is None:
        raise HostUnfit(why)
    await run(connection, target, _SWITCH.format(**places, colour=host.active))
    raise HostUnfit(f"{why}. It goes on with the version that was there before")


async def _answers(connection: asyncssh.SSHClientConnection, target: SSHTarget, wanted: Wanted) -> str | None:
    """The version of the app once it is the wanted one; None when it ends, or that takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ANSWERS_WITHIN_S
    while loop.time() < deadline:
        version = await _version(connection)
        if wanted.is_served_by(version):
            return version
        if await run(connection, target, f"systemctl show -p SubState --value {UNIT}") == "auto-restart":
            return None
        await asyncio.sleep(PAUSE_S)
    return None


async def _version(connection: asyncssh.SSHClientConnection) -> str | None:
    """Of the app that answers; None: none does."""
    try:
        return await GatewayClient(connection).version()
    except Unreachable:
        return None


async def run(
    connection: asyncssh.SSHClientConnection, target: SSHTarget, script: str, content: bytes = b""
) -> str:
    """The output of a script of the shell. Raises HostUnfit with its last lines when it fails."""
    command = f"exec /bin/sh -c {shlex.quote(script)}"
    done = await connection.run(command, input=content, encoding=None, timeout=COMMAND_SECONDS)
    output, errors = _text(done.stdout), _text(done.stderr)
    if done.exit_status is None:
        raise Unreachable(f"The connection to {target} broke")
    if done.exit_status:
        told = _told(errors or output) or f"exit status {done.exit_status}"
        raise HostUnfit(f"A command failed on {target}: {told}", detail=told)
    return output


def _text(output: object) -> str:
    return output.decode(errors="replace").strip() if isinstance(output, bytes) else str(output or "")


def _told(text: str) -> str:
    """The end of it, on one line."""
    return " ".join(text.split())[-MAX_TOLD_CHARACTERS:]

"""Puts the agent on a host and has it run there. Every step may be repeated."""

from __future__ import annotations

import json
import shlex
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dstack.core.errors import HostUnfit, Unreachable
from dstack.server.hosts.ssh import connecting
from dstack.server.hosts.ssh.probing import HostProbe, probe
from dstack.server.hosts.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

INSTALL_SECONDS = 60.0


@dataclass(frozen=True)
class Deployed:
    """Which host that was, and where the agent listens on it."""

    target: SSHTarget
    agent_socket: str
    docker: str
    """See `HostProbe`."""


async def deploy(connection: asyncssh.SSHClientConnection, target: SSHTarget, archive: bytes) -> Deployed:
    """The agent of that archive runs on the host when this returns. Raises HostError kinds."""
    async with connecting.translated(target):
        found = await probe(connection, target)
        told = await _with_archive(connection, target, found, archive, "install")
    return Deployed(target, str(told["socket"]), found.docker)


async def remove(connection: asyncssh.SSHClientConnection, target: SSHTarget, archive: bytes) -> None:
    """Ends the agent and removes it from the host. Raises HostError kinds."""
    async with connecting.translated(target):
        found = await probe(connection, target)
        await _with_archive(connection, target, found, archive, "uninstall")


async def _with_archive(
    connection: asyncssh.SSHClientConnection, target: SSHTarget, found: HostProbe, archive: bytes, action: str
) -> dict[str, Any]:
    """Copies the archive to a file that nobody can guess, runs it once and removes it, in one command."""
    upload = f"/tmp/dstack-agent-{uuid.uuid4().hex}.pyz"
    act = [found.python, upload, action, "--dir", found.folder]
    if action == "install" and found.as_root and not found.is_root:
        act += ["--socket-user", found.user]
    script = (
        f"set -C; umask 077; trap 'rm -f {upload}' EXIT; cat > {upload} || exit 42; "
        f"{found.sudo}{' '.join(shlex.quote(part) for part in act)}"
    )
    command = f"exec /bin/sh -c {shlex.quote(script)}"
    done = await connection.run(command, input=archive, encoding=None, timeout=INSTALL_SECONDS)
    return _answer(target, _text(done.stdout), _text(done.stderr), done.exit_status)


def _text(output: object) -> str:
    return output.decode(errors="replace").strip() if isinstance(output, bytes) else str(output or "")


def _answer(target: SSHTarget, output: str, errors: str, status: int | None) -> dict[str, Any]:
    if status is None:
        raise Unreachable(f"The connection to {target} broke while the agent was put there")
    try:
        told: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        told = {"error": (errors or output)[-300:] or f"exit status {status}"}
    if "error" in told:
        raise HostUnfit(f"The agent cannot be put on {target}: {told['error']}")
    return told

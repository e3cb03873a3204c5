"""One OpenSSH connection as a process: whom it trusts, how it is started, and how it is known to be up.

It runs a command on the host that does nothing but wait. That makes the host's `sshd` set TCP_NODELAY on the
connection, which it does for sessions only; forwarded answers in several pieces would else wait for delayed
acknowledgements, 40 ms each (ADR 0008). And it ends the connection when this process dies, however it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

UP_SECONDS = 30.0
"""In which a connection must be up, the jump host's excluded."""
END_SECONDS = 5.0
ALIAS = "dstack"
"""The name under which the host's key is known."""
_READY = "dstack: forwarding"
_WAIT = f"echo {_READY}; exec cat >/dev/null"
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "StrictHostKeyChecking": "yes",
    "HostKeyAlias": ALIAS,
    "GlobalKnownHostsFile": "none",
    "UpdateHostKeys": "no",
    "PreferredAuthentications": "publickey",
    "IdentitiesOnly": "yes",
    "IdentityAgent": "none",
    "Ciphers": "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr",
    "Compression": "no",
    "ExitOnForwardFailure": "yes",
    "StreamLocalBindUnlink": "yes",
    "ControlMaster": "yes",
    "ControlPersist": "no",
    "LogLevel": "ERROR",
}


class TunnelError(ConnectionError):
    """There is no way through; the text says why."""


@dataclass(frozen=True)
class Destination:
    """An SSH server and how to log in there. `host_key`: the key it must show, as `ssh-ed25519 AAAA…`. `jump`: the
    server that it is reached through."""

    hostname: str
    username: str
    port: int = 22
    private_keys: tuple[str, ...] = field(default=(), repr=False)
    host_key: str | None = None
    jump: Destination | None = None

    def __str__(self) -> str:
        return f"{self.username}@{self.hostname}:{self.port}"


class SSHProcess:
    """`ssh` to one host, with forwards from Unix sockets in `sockets`. It is up once `start` returns."""

    def __init__(
        self,
        destination: Destination,
        sockets: Path,
        keys: Path,
        through: Path | None,
        *,
        are_shared: bool = False,
    ) -> None:
        """`keys`: a folder for private keys, which are there only while it logs in. `through`: the control socket
        of the connection to the jump host. `are_shared`: the forwards are for all who may enter `sockets`."""
        self._destination = destination
        self._mask = "0111" if are_shared else "0177"
        self._keys = keys
        self._through = through
        self._tag = secrets.token_hex(4)
        self._sockets = sockets
        self.control = sockets / f"{self._tag}.ctl"
        self._said: deque[str] = deque(maxlen=20)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: list[asyncio.Task[None]] = []

    def socket_path(self, name: str) -> str:
        """Where a forward of that name listens."""
        return str(self._sockets / f"{self._tag}-{name}")

    async def start(self, forwards: Mapping[str, str]) -> None:
        """`forwards`: sockets and where each leads to, as `host:port` seen from there. Raises TunnelError."""
        if self._destination.host_key is None:
            raise TunnelError(f"No host key of {self._destination} is on record, so nobody there can be trusted")
        known_hosts = self._sockets / f"{self._tag}.known"
        known_hosts.write_text(f"{ALIAS} {self._destination.host_key}\n")
        identities = [
            self._keys / f"{self._tag}-{number}" for number in range(len(self._destination.private_keys))
        ]
        try:
            for path, key in zip(identities, self._destination.private_keys, strict=True):
                _write_private(path, key)
            await self._start(self._command(known_hosts, identities, forwards))
        finally:
            for path in (*identities, known_hosts):
                path.unlink(missing_ok=True)

    def _command(self, known_hosts: Path, identities: Sequence[Path], forwards: Mapping[str, str]) -> list[str]:
        options = {
            **_OPTIONS,
            "ControlPath": _quoted(self.control),
            "UserKnownHostsFile": _quoted(known_hosts),
            "StreamLocalBindMask": self._mask,
        }
        if self._through is not None:
            options["ProxyCommand"] = _by_way_of(self._through, self._destination)
        command = ["ssh", "-F", "none", "-T"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        for path in identities:
            command += ["-o", f"IdentityFile={_quoted(path)}"]
        for listening, target in forwards.items():
            command += ["-L", f"{listening}:{target}"]
        place = ["-l", self._destination.username, "-p", str(self._destination.port)]
        return [*command, *place, "--", self._destination.hostname, _WAIT]

    async def _start(self, command: Sequence[str]) -> None:
        pipe = asyncio.subprocess.PIPE
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise TunnelError(f"`ssh` cannot be started: {error.strerror}; install OpenSSH's client") from error
        assert process.stderr is not None
        self._reading.append(asyncio.ensure_future(self._listen(process.stderr)))
        try:
            is_up = await asyncio.wait_for(self._becomes_ready(process), UP_SECONDS)
        except asyncio.TimeoutError:
            is_up = False
            self._said.append(f"it was not up within {UP_SECONDS:g} s")
        except BaseException:
            await self.end()
            raise
        if not is_up:
            await self.end()
            raise TunnelError(f"No SSH connection to {self._destination}: {self._explain()}")
        assert process.stdout is not None
        self._reading.append(asyncio.ensure_future(_drain(process.stdout)))

    async def _becomes_ready(self, process: asyncio.subprocess.Process) -> bool:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if line.strip() == _READY.encode():
                return True
        return False

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self._said.append(line.decode(errors="replace").strip())

    def _explain(self) -> str:
        text = "; ".join(line for line in self._said if line and not line.startswith("@"))
        return text or "ssh ended without a word"

    async def forward(self, path: str, target: str) -> None:
        """Adds a forward. Raises TunnelError."""
        await self._control("forward", path, target)

    async def unforward(self, path: str, target: str) -> None:
        """Takes it away; connections through it go on. Raises TunnelError."""
        await self._control("cancel", path, target)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    async def _control(self, what: str, path: str, target: str) -> None:
        options = ["-o", f"ControlPath={_quoted(self.control)}", "-o", "StreamLocalBindUnlink=yes"]
        command = ["ssh", "-F", "none", *options, "-O", what, "-L", f"{path}:{target}", "--", ALIAS]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await asyncio.wait_for(process.communicate(), END_SECONDS)
        except asyncio.TimeoutError:
            raise TunnelError(f"`ssh` to {self._destination} does not take orders any more") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise TunnelError(f"No forward through {self._destination}: {said.decode(errors='replace').strip()}")

    async def ended(self) -> None:
        """Returns once the connection is over."""
        assert self._process is not None
        await self._process.wait()

    def kill(self) -> None:
        """At once: what goes through it breaks."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> None:
        """Ends it, and removes what it left behind."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), END_SECONDS)
            except asyncio.TimeoutError:
                self.kill()
                await process.wait()
        if self._reading:
            _, late = await asyncio.wait(self._reading, timeout=END_SECONDS)
            for task in late:
                task.cancel()
        for path in self._sockets.glob(f"{self._tag}*"):
            path.unlink(missing_ok=True)


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text if text.endswith("\n") else f"{text}\n")


def _quoted(path: Path) -> str:
    """As a value of an option in which `%` and spaces mean something."""
    return '"{}"'.format(str(path).replace("%", "%%"))


def _by_way_of(control: Path, destination: Destination) -> str:
    """A command that hands the bytes to the connection with that control socket; it makes none of its own."""
    options = ["-o", f"ControlPath={_quoted(control)}", "-o", "ProxyCommand=false", "-o", "BatchMode=yes"]
    command = ["ssh", "-F", "none", *options]
    where = f"[{destination.hostname}]:{destination.port}"
    return " ".join(shlex.quote(word) for word in (*command, "-W", where, "--", ALIAS)).replace("%", "%%")

"""The programs of OpenSSH, and rsync, as a person uses them to get into a job."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.harness import ServerProcess, clean_environment, free_port, wait_for

CARRY = Path(__file__).parent / "carry.py"


def make_key(folder: Path) -> Path:
    """A new pair; returns the private half."""
    path = folder / f"key-{uuid.uuid4().hex[:8]}"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


@dataclass
class Ssh:
    """One job's address at the door of a server, and a key. `token`: by WebSocket, with that token."""

    server: ServerProcess
    job_id: str
    key: Path
    token: str | None = None
    options: list[str] = field(default_factory=list)

    @classmethod
    def of_run(cls, server: ServerProcess, name: str, **more: Any) -> Ssh:
        """Into the first job of a run, with a key that its user registers."""
        key = make_key(server.home)
        server.post("/api/users/public_keys/add", {"key": key.with_suffix(".pub").read_text()})
        return cls(server, server.run(name)["jobs"][0]["job_submissions"][-1]["id"], key, **more)

    @property
    def destination(self) -> str:
        return f"{self.job_id}@127.0.0.1"

    @property
    def port(self) -> int:
        for line in self.server.output.splitlines():
            if line.startswith("SSH into jobs: port "):
                port = int(line.rpartition(" ")[2])
        return port

    @property
    def flags(self) -> list[str]:
        flags = ["-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
        flags += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        flags += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", f"Port={self.port}", *self.options]
        if self.token is not None:
            flags += ["-o", f"ProxyCommand={sys.executable} {CARRY} 127.0.0.1 {self.server.port} {self.token}"]
        return flags

    def command(self, *arguments: str, user: str = "") -> list[str]:
        """`ssh` with its flags; `arguments` come before the command when they start with a dash."""
        return ["ssh", *self.flags, *arguments, f"{self.job_id}{user}@127.0.0.1"]

    def __call__(
        self, *command: str, flags: tuple[str, ...] = (), stdin: bytes = b"", user: str = ""
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command in the job (or a shell), and waits for it."""
        argv = [*self.command(*flags, user=user), *command]
        return subprocess.run(argv, input=stdin, capture_output=True, timeout=60, env=self._env())

    def program(self, *argv: str) -> subprocess.CompletedProcess[bytes]:
        """`scp`, `sftp` or `rsync`, with their flags among the arguments."""
        return subprocess.run(argv, capture_output=True, timeout=60, env=self._env(), stdin=subprocess.DEVNULL)

    @contextlib.contextmanager
    def background(self, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """`ssh -N` with these flags; ended with the block."""
        argv = self.command("-N", "-o", "ExitOnForwardFailure=yes", *flags)
        process = subprocess.Popen(argv, env=self._env(), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=5)
            process.kill()  # one that was about to wait for the network may miss the signal
            process.communicate()

    @contextlib.contextmanager
    def forwarding(self, target: int | str) -> Iterator[int]:
        """A local port that leads to a port (or Unix socket) of the job, once it listens."""
        local = free_port()
        to = f"localhost:{target}" if isinstance(target, int) else target
        with self.background("-L", f"{local}:{to}"):
            wait_for("ssh to listen", lambda: is_listening(local))
            yield local

    def _env(self) -> dict[str, str]:
        return clean_environment(self.server.home)


def is_listening(port: int) -> bool:
    """Without connecting, which a forwarded port would pass on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def ask(port: int, data: bytes) -> bytes:
    """Sends, ends sending, and reads all of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer

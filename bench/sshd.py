"""A real OpenSSH server for comparison, and what is sent through forwarded ports."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.harness import free_port, wait_for
from tests.e2e.ssh import is_listening, make_key

SOURCE = """
import socket, sys, threading
BLOCK = b"x" * 262144
def serve(connection):
    line = b""
    while not line.endswith(b"\\n"):
        line += connection.recv(1)
    kind, _, count = line.strip().partition(b" ")
    left = int(count)
    if kind == b"down":
        while left > 0:
            connection.sendall(BLOCK[:left])
            left -= len(BLOCK)
    else:
        while left > 0:
            left -= len(connection.recv(262144))
        connection.sendall(b"ok")
    connection.close()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
"""Sends as many bytes as it is asked for (`down N`), or takes them (`up N`)."""


def mb_per_second(port: int, kind: str, count: int) -> float:
    """Of one transfer of `count` bytes by way of a local port."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.perf_counter()
        connection.sendall(f"{kind} {count}\n".encode())
        if kind == "down":
            _read(connection, count)
        else:
            block = b"x" * 262144
            for sent in range(0, count, len(block)):
                connection.sendall(block[: count - sent])
            _read(connection, 2)
        return count / 1e6 / (time.perf_counter() - start)


def _read(connection: socket.socket, count: int) -> None:
    buffer = bytearray(1 << 20)
    while count > 0:
        got = connection.recv_into(buffer)
        if not got:
            raise RuntimeError(f"{count} bytes are missing")
        count -= got


@contextlib.contextmanager
def plain_sshd(folder: Path) -> Iterator[list[str]]:
    """The arguments with which `ssh` gets into an OpenSSH server of this machine."""
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(program).exists():
        raise RuntimeError("sshd is not installed")
    Path("/run/sshd").mkdir(exist_ok=True)
    port, host_key, key = free_port(), make_key(folder), make_key(folder)
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\n"
        "UsePAM yes\nPidFile none\nPermitRootLogin yes\n"
    )
    server = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=(folder / "sshd.log").open("wb"))
    try:
        wait_for("sshd", lambda: is_listening(port))
        flags = ["-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"]
        flags += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-p", str(port)]
        yield [*flags, "127.0.0.1"]
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def forwarding(arguments: list[str], target: int) -> Iterator[int]:
    """A local port that leads to `target`, by `ssh -N -L`."""
    local = free_port()
    process = subprocess.Popen(["ssh", "-N", "-L", f"{local}:localhost:{target}", *arguments])
    try:
        wait_for("ssh to listen", lambda: is_listening(local))
        yield local
    finally:
        process.terminate()
        process.wait()

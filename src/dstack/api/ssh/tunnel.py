"""The connection that forwards ports: one `ssh` process, looked after for as long as it is wanted."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from dstack.api.errors import AttachError
from dstack.api.ssh.ports import ReservedPorts

CLIENT_VARIABLE = "DSTACK_SSH_CLIENT"
TRIES = 10
TRY_INTERVAL = 1.0
BREAK_PAUSE = 1.0
"""Seconds after a break: a job that ends takes its connection along, and that is no reason to come back."""
READY_TIMEOUT = 30.0
"""Seconds."""
READY = "dstack: attached"
_FATAL = (
    "Host key verification failed",
    "CERTIFICATE_VERIFY_FAILED",
    "local forwarding",
    "no such identity",
    "Bad configuration option",
)
"""What another try would not change, in the words of `ssh` and of the carrier."""
_PR_SET_PDEATHSIG = 1


def find_ssh(environ: Mapping[str, str] = os.environ) -> str:
    """The OpenSSH client to use. Raises AttachError when there is none."""
    wished = environ.get(CLIENT_VARIABLE)
    found = shutil.which(wished or "ssh")
    if found is None:
        name = f"{wished} (from {CLIENT_VARIABLE})" if wished else "ssh"
        raise AttachError(f"There is no SSH client {name}: install OpenSSH, or name it in {CLIENT_VARIABLE}")
    return found


def tunnel_command(ssh: str, config: Path, name: str, user: str, ports: ReservedPorts) -> list[str]:
    """`ssh` with all forwards; once they listen it runs a local command, which tells us."""
    options = {
        "BatchMode": "yes",
        "ExitOnForwardFailure": "yes",
        "ControlPath": "none",
        "ConnectTimeout": "10",
        "PermitLocalCommand": "yes",
        "LocalCommand": f"echo {READY}",
    }
    command = [ssh, "-F", str(config), "-N", "-T", "-l", user]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    host = f"[{ports.host}]" if ":" in ports.host else ports.host
    for remote, local in ports.forwards.items():
        command += ["-L", f"{host}:{local}:localhost:{remote}"]
    return [*command, name]


class Tunnel:
    """Keeps the connection up until it is closed. `notify` is told of breaks, in words for the user."""

    def __init__(
        self, command: list[str], ports: ReservedPorts, *, is_refusal_final: bool, notify: Callable[[str], None]
    ) -> None:
        """`is_refusal_final`: a refused key will not be accepted later, as it may be while a host starts."""
        self._command = command
        self._ports = ports
        self._fatal = (*_FATAL, "Permission denied") if is_refusal_final else _FATAL
        self._notify = notify
        self._closed = threading.Event()
        self._settled = threading.Event()
        self._error: AttachError | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="dstack-tunnel")

    def start(self) -> None:
        """Begins to connect."""
        self._thread.start()

    def wait_ready(self) -> None:
        """Returns when all ports are forwarded. Raises AttachError when they will not be."""
        self._settled.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the connection. The ports are free afterwards."""
        with self._lock:
            self._closed.set()
            if self._process is not None:
                self._process.terminate()
        if self._thread.is_alive():
            self._thread.join()
        self._ports.release()

    def _keep(self) -> None:
        """The process is always started from this thread: it is to end with the thread that started it."""
        try:
            self._connect(TRIES)
            self._settled.set()
            while not self._closed.is_set():
                self._wait_end()
                self._ports.hold()
                if self._closed.wait(BREAK_PAUSE):
                    return
                self._notify("The connection broke; attaching again…")
                self._connect(None)
                self._notify("Attached again.")
        except AttachError as error:
            if self._settled.is_set() and not self._closed.is_set():
                self._notify(f"Not attached any more: {error}")
            self._error = error
        finally:
            self._settled.set()

    def _connect(self, tries: int | None) -> None:
        """Raises AttachError after so many tries (None: endless), or at once for what no other try changes."""
        number = 0
        while True:
            number += 1
            try:
                return self._try_once()
            except AttachError as error:
                if self._closed.is_set():
                    raise AttachError("Attaching was given up") from error
                if number == tries or any(text in str(error) for text in self._fatal):
                    raise
            self._ports.hold()
            self._closed.wait(TRY_INTERVAL)

    def _try_once(self) -> None:
        with self._lock:
            if self._closed.is_set():
                raise AttachError("Attaching was given up")
            self._ports.release()
            self._process = process = _start(self._command)
        timer = threading.Timer(READY_TIMEOUT, process.kill)
        timer.start()
        said: collections.deque[str] = collections.deque(maxlen=20)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip() == READY:
                    return
                said.append(line.strip())
        finally:
            timer.cancel()
        process.wait()
        process.stdout.close()
        raise AttachError(_explain(list(said)))

    def _wait_end(self) -> None:
        """Reads on what `ssh` says (of single connections that failed), so that it never waits for us."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        with contextlib.closing(process.stdout):
            for _ in process.stdout:
                pass
        process.wait()


def _start(command: list[str]) -> subprocess.Popen[str]:
    """A process that Ctrl-C in the terminal does not end, but our death does (on Linux)."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _explain(said: list[str]) -> str:
    text = "; ".join(line for line in said if line and not line.startswith("@"))
    return f"Cannot attach: {text or 'ssh ended without a word'}"

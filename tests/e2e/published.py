"""The published client, unmodified, in an environment of its own: its command line and its Python."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.e2e.harness import ROOT, TOKEN, ServerProcess, wait_for

VERSION = "0.22.5"
VENV = ROOT / ".venv-published"
INTERRUPTIBLE = ("env", "--default-signal=INT")
"""What is started in the background ignores Ctrl-C, and so does what it starts."""
NOWHERE = "http://127.0.0.1:9"
"""A proxy that is not there: the client talks to our server and to nobody else."""


class Result(NamedTuple):
    """How a command ended and what it printed: words with single blanks between them, without empty lines."""

    status: int
    out: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def install() -> None:
    """Makes the environment unless it is there, as `make test` does. Fails the tests when it cannot be made."""
    command = [str(ROOT / "scripts/install-published-client"), sys.executable]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert made.returncode == 0, made.stdout


@dataclass
class PublishedClient:
    """The client of one user, at a home of its own."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    _commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True)
        self.home.mkdir()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def work(self) -> Path:
        """Where commands are run."""
        return self.folder / "work"

    @contextlib.contextmanager
    def started(self) -> Iterator[PublishedClient]:
        """Commands can be run within the block."""
        script = Path(__file__).with_name("fork_server.py")
        fork_server = [*INTERRUPTIBLE, str(VENV / "bin/python"), str(script), self._socket.name]
        process = subprocess.Popen(fork_server, env=self.environment(), cwd=self.folder)
        try:
            wait_for("the published client", self._socket.exists, 60)
            yield self
        finally:
            for command in self._commands:
                command.end()
            process.kill()
            process.wait()

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a command sees: neither our sources nor any of the product's settings."""
        hidden = ("DSTACK_", "PYTHON")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        kept.update(HOME=str(self.home), COLUMNS="160", NO_COLOR="1")
        kept.update(HTTPS_PROXY=NOWHERE, NO_PROXY="127.0.0.1,localhost")
        return {**kept, **self.env, **(extra or {})}

    def login(self, server: ServerProcess, project: str = "main") -> None:
        """Puts the project on file."""
        result = self("project", "add", "--name", project, "--url", server.url, "--token", TOKEN, "-y")
        assert result.status == 0, result.out

    def write(self, name: str, text: str) -> None:
        (self.work / name).write_text(text)

    def start(
        self,
        *argv: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> Command:
        """A command that runs; with `terminal` it prints to one, where tables are drawn as they change."""
        cwd, environment = cwd or self.work, self.environment(env)
        if terminal:
            command = on_terminal([str(VENV / "bin/dstack"), *argv], cwd, environment)
        else:
            request = {"argv": argv, "cwd": str(cwd), "env": environment}
            command = forked(self._socket, json.dumps(request).encode())
        self._commands.append(command)
        return command

    def __call__(
        self, *argv: str, stdin: str = "", cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Result:
        """A command that has ended. A traceback of the client fails the test: our answer has broken it."""
        command = self.start(*argv, cwd=cwd, env=env)
        command.answer(stdin)
        result = command.wait()
        assert "Traceback" not in result.out, f"dstack {' '.join(argv)}:\n{result.out}"
        return result

    def python(self, script: str) -> Result:
        """A script on its Python API."""
        command = [str(VENV / "bin/python"), "-c", script]
        ran = subprocess.run(
            command,
            env=self.environment(),
            cwd=self.work,
            timeout=90,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return Result(ran.returncode, ran.stdout)

    @property
    def _socket(self) -> Path:
        return self.folder / "s"


class Command:
    """A running command; `poll` tells its exit status once it has ended."""

    def __init__(self, process_id: int, poll: Callable[[], int | None], stdin: int, stdout: int) -> None:
        self.process_id = process_id
        self.seen = b""
        self._poll = poll
        self._stdin, self._stdout = stdin, stdout
        os.set_blocking(stdout, False)

    def answer(self, text: str) -> None:
        """All that it reads from its standard input."""
        os.write(self._stdin, text.encode())
        self._close()

    def wait_for_output(self, text: str, timeout: float = 30) -> None:
        """Until it has printed that."""
        wait_for(f"{text!r} in the output of the command", lambda: text in _plain(self._read()), timeout)

    @property
    def plain(self) -> str:
        """What it has printed, as in `Result`."""
        return _plain(self.seen)

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        os.kill(self.process_id, signal.SIGINT)

    def wait(self, timeout: float = 60) -> Result:
        """Until it ends; kills it when it does not."""
        try:
            wait_for("the end of the command", self._has_ended, timeout)
        except AssertionError:
            raise AssertionError(f"still running after {timeout} s:\n{_plain(self._read())}") from None
        finally:
            self.end()
        status = self._poll()
        assert status is not None
        return Result(status, _plain(self.seen))

    def end(self) -> None:
        """Kills it if it still runs."""
        if self._stdout < 0:
            return
        if self._poll() is None:
            os.kill(self.process_id, signal.SIGKILL)
            wait_for("the killed command", lambda: self._poll() is not None)
        self._read()
        self._close()
        os.close(self._stdout)
        self._stdout = -1

    def _has_ended(self) -> bool:
        """Reads on, lest the command wait for us."""
        self._read()
        return self._poll() is not None

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):  # nothing there yet; or a terminal that nobody writes to any more
            while chunk := os.read(self._stdout, 65536):
                self.seen += chunk
        return self.seen

    def _close(self) -> None:
        """Its standard input."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1


def on_terminal(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Command:
    """A process that prints to a terminal."""
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.openpty()
    process = subprocess.Popen(
        [*INTERRUPTIBLE, *command], cwd=cwd, env=env, stdin=theirs_in, stdout=theirs_out, stderr=theirs_out
    )
    os.close(theirs_in)
    os.close(theirs_out)
    return Command(process.pid, process.poll, ours_in, ours_out)


def forked(server: Path, request: bytes) -> Command:
    """A process that `fork_server` makes."""
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    connection = _connect(server)
    socket.send_fds(connection, [request], [theirs_in, theirs_out])
    os.close(theirs_in)
    os.close(theirs_out)
    statuses: list[int] = []

    def poll() -> int | None:
        if not statuses and select.select([connection], [], [], 0)[0]:
            statuses.append(_line(connection))
            connection.close()
        return statuses[0] if statuses else None

    return Command(_line(connection), poll, ours_in, ours_out)


def _line(connection: socket.socket) -> int:
    """The number on the next line."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        assert byte, "the process that runs the published client has gone"
        line += byte
    return int(line)


def _connect(path: Path) -> socket.socket:
    """To a socket whose path may be longer than an address may be."""
    folder = os.open(path.parent, os.O_PATH)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    return connection


def _plain(output: bytes) -> str:
    lines = (" ".join(line.split()) for line in output.decode(errors="replace").splitlines())
    return "\n".join(line for line in lines if line)

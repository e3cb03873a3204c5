"""A real server process on a home of its own, and the REST calls the end-to-end tests make."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "00000000-0000-4000-8000-00000000e2e0"
RESOURCES = re.compile(r"cpu=\d+ mem=[\d.]+[MGT]B disk=[\d.]+[MGT]B")
T = TypeVar("T")


class ApiError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


def wait_for(what: str, probe: Callable[[], T], timeout: float = 30) -> T:
    """The first truthy answer of `probe`; fails with `what` when there is none in time."""
    deadline = time.monotonic() + timeout
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = probe()
        except (OSError, ApiError, http.client.HTTPException) as error:
            last = error
        else:
            if answer:
                return answer
            last = answer
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout} s for {what}; last seen: {last!r}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(home: Path, **extra: str) -> dict[str, str]:
    """The caller's environment without any of the product's settings, at another home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DSTACK_")}
    kept.update(HOME=str(home), PYTHONPATH=str(ROOT / "src"), AWS_EC2_METADATA_DISABLED="true", NO_COLOR="1")
    kept.update(PYTHONPYCACHEPREFIX=str(ROOT / ".cache/pycache"))  # compiled once for all the processes of a run
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    kept.update(extra)
    return kept


@dataclass
class ServerProcess:
    """`dstack server` as a process; may be killed and started again on the same home."""

    home: Path
    port: int = field(default_factory=free_port)
    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """What the command is started with, such as `setpriv`."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return (self.home / "server.out").read_text(errors="replace")

    def start(self, *, wait: bool = True, **extra: str) -> ServerProcess:
        """Starts it; with `wait` returns when it is healthy."""
        self.home.mkdir(parents=True, exist_ok=True)
        own = {"DSTACK_SERVER_ADMIN_TOKEN": TOKEN, "DSTACK_SERVER_SSH_PORT": "0"}
        env = clean_environment(self.home, **{**own, **self.env, **extra})
        with (self.home / "server.out").open("ab") as out:
            command = [*self.prefix, sys.executable, "-m", "dstack", "server", "--port", str(self.port), "-y"]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=env, stdin=subprocess.DEVNULL)
        if wait:
            wait_for("a healthy server", self.healthy)
        return self

    def healthy(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.output}")
        return bool(self.call("GET", "/healthcheck").get("status") == "running")

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Kills it if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def stop(self) -> int:
        """SIGTERM, and waits for the drain; the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=30)

    def call(self, method: str, path: str, body: Any = None, *, token: str = TOKEN) -> Any:
        """One request on a connection of its own; the decoded answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
        is_json = "json" in (response.getheader("Content-Type") or "")
        decoded = json.loads(data) if is_json else data
        if response.status != 200:
            raise ApiError(response.status, decoded)
        return decoded

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, body)

    def submit(self, name: str, commands: list[str], **configuration: Any) -> dict[str, Any]:
        """Applies a task; the run as answered."""
        spec = {"run_name": name, "configuration": {"type": "task", "commands": commands, **configuration}}
        run: dict[str, Any] = self.post(
            "/api/project/main/runs/apply", {"plan": {"run_spec": spec, "current_resource": None}, "force": False}
        )
        return run

    def run(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.post("/api/project/main/runs/get", {"run_name": name})
        return found

    def list_runs(self) -> list[dict[str, Any]]:
        """All runs of the project, over all pages."""
        runs: list[dict[str, Any]] = []
        body: dict[str, Any] = {"project_name": "main", "limit": 100, "job_submissions_limit": 1}
        while page := self.post("/api/runs/list", body):
            runs += page
            body.update(prev_submitted_at=page[-1]["submitted_at"], prev_run_id=page[-1]["id"])
        return runs

    def has_active_runs(self) -> bool:
        """Cheap, to be asked often."""
        body = {"project_name": "main", "only_active": True, "include_jobs": False, "limit": 1}
        return bool(self.post("/api/runs/list", body))

    def wait_run(self, name: str, *statuses: str, timeout: float = 60) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            run = self.run(name)
            return run if run["status"] in statuses else None

        found = wait_for(f"run {name} to be {' or '.join(statuses)}", reached, timeout)
        assert found is not None
        return found

    def iter_log(self, name: str) -> Iterator[bytes]:
        """The stored log of a run's last submission, page by page."""
        submission = self.run(name)["jobs"][0]["job_submissions"][-1]["id"]
        token: str | None = None
        while True:
            body = {"run_name": name, "job_submission_id": submission, "next_token": token, "limit": 1000}
            page = self.post("/api/project/main/logs/poll", body)
            for record in page["logs"]:
                yield base64.b64decode(record["message"])
            token = page["next_token"]
            if token is None:
                return

    def log(self, name: str) -> bytes:
        return b"".join(self.iter_log(name))


@dataclass
class Cli:
    """`dstack` as a person runs it, in a folder and at the home of the server."""

    server: ServerProcess
    env: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        folder = self.server.home / "work"
        folder.mkdir(exist_ok=True)
        return folder

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "dstack", *argv],
            cwd=self.folder,
            env=clean_environment(self.server.home, FROM_HERE="passed on", **self.env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *argv: str, stdin: str = "") -> tuple[int, str]:
        """Exit status and output; what differs from machine to machine is left out."""
        with self.start(*argv) as process:
            out, _ = process.communicate(stdin, timeout=90)
        return process.returncode, RESOURCES.sub("RESOURCES", out)

    def write(self, text: str, name: str = ".dstack.yml") -> None:
        (self.folder / name).write_text(text)


def processes_with(marker: str) -> list[int]:
    """Ids of live processes whose environment or command line holds `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if marker.encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(set(found) - {os.getpid()})


def end_processes_of(home: Path) -> None:
    """Kills what a test left behind under its own home: the server, the local agent and its tasks."""
    for pid in processes_with(str(home)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def agent_pid(home: Path) -> int:
    """Process id of the local agent, asked over its own socket."""
    return int(agent_call(home, "GET", "/v1/info")["pid"])


def agent_call(home: Path, method: str, path: str) -> Any:
    """One call of the agent's protocol on the local agent's socket."""
    return unix_call(home / ".dstack/server/hosts/local/agent.sock", method, path)


def unix_call(path: Path, method: str, target: str) -> Any:
    """One request on a Unix socket, whose path may be longer than an address may be; the decoded answer."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
            connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: host\r\nConnection: close\r\n\r\n".encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            data = response.read()
    finally:
        os.close(folder)
    if response.status != 200:
        raise OSError(f"{target}: {response.status} {data!r}")
    return json.loads(data)


def unique(prefix: str) -> str:
    """A valid run name that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"

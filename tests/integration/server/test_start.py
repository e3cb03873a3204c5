"""The server as a process: first start, later starts, what is told when it cannot start, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.fixtures.processes import StartProcess, wait_until

from dstack.server.settings import DEFAULT_SSH_PORT, load
from dstack.server.ssh_door import listening

PROGRAM = "import sys; from dstack.server.main import run; sys.exit(run())"
Start = Callable[..., "Server"]


class Server:
    """A server process and what it has said."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    def url(self) -> str:
        """Waits until it is there."""
        found = wait_until(
            lambda: re.search(r"The server is running at (\S+)", self.output) or self.process.poll() is not None,
            seconds=60,
            what=f"the server to start; it said: {self.output}",
        )
        assert found is not True, f"the server ended: {self.output}"
        return str(found.group(1))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def status(self) -> int:
        return self.process.wait(60)


@pytest.fixture
def start(start_process: StartProcess, tmp_path: Path) -> Start:
    count = 0

    def start(**environ: str) -> Server:
        nonlocal count
        count += 1
        output = tmp_path / f"server-{count}.log"
        src = str(Path(__file__).parents[3] / "src")
        settings = {"DSTACK_SERVER_PORT": "0", "DSTACK_SERVER_SSH_PORT": "0", "DSTACK_LOCAL_BACKEND": "off"}
        settings["PYTHONPATH"] = src
        with output.open("wb") as log:
            process = start_process(
                [sys.executable, "-c", PROGRAM], env={**os.environ, **settings, **environ}, stdout=log
            )
        return Server(process, output)

    return start


def get(url: str, token: str = "") -> tuple[int, object]:
    headers = {"Authorization": f"Bearer {token}"}
    method = "POST" if "/api/" in url else "GET"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=30) as answer:
        return answer.status, json.loads(answer.read())


def test_a_first_start_makes_all_that_is_needed(start: Start, home: Path) -> None:
    server = start()
    url = server.url()
    assert server.output.startswith("Applying ~/.dstack/server/config.yml...\n\n")
    token = re.search(r'The admin token is "(.+)"', server.output)
    assert token is not None
    assert get(f"{url}healthcheck") == (200, {"status": "running"})
    status, user = get(f"{url}api/users/get_my_user", token.group(1))
    assert (status, isinstance(user, dict) and user["username"]) == (200, "admin")
    assert get(f"{url}api/projects/main/get", token.group(1))[0] == 200
    written = yaml.safe_load((home / ".dstack/server/config.yml").read_text())
    assert written == {"projects": [{"name": "main", "backends": []}], "encryption": {"keys": []}}
    client = yaml.safe_load((home / ".dstack/config.yml").read_text())["projects"]
    assert client == [{"name": "main", "url": url.rstrip("/"), "token": token.group(1), "default": True}]
    for path in (".dstack/config.yml", ".dstack/server/config.yml", ".dstack/server/encryption.key"):
        assert (home / path).stat().st_mode & 0o077 == 0
    assert server.end() == 0


def test_later_starts_keep_the_token_and_apply_the_file_again(start: Start, home: Path) -> None:
    first = start(DSTACK_SERVER_ADMIN_TOKEN="mine")
    first.url()
    assert first.end(signal.SIGINT) == 0
    path = home / ".dstack/server/config.yml"
    path.write_text(path.read_text().replace("projects:", "projects:\n- name: second"))
    second = start(DSTACK_SERVER_ADMIN_TOKEN="other")
    url = second.url()
    assert "admin token" not in second.output
    assert get(f"{url}api/projects/second/get", "mine")[0] == 200
    assert second.end() == 0


def test_better_b22_on_a_loopback_address_the_machine_itself_is_a_fleet(start: Start) -> None:
    server = start(DSTACK_LOCAL_BACKEND="auto", DSTACK_SERVER_ADMIN_TOKEN="t")
    url = server.url()
    assert "backend and fleet 'local'" in server.output
    _, fleets = get(f"{url}api/project/main/fleets/list", "t")
    assert isinstance(fleets, list)
    assert [fleet["name"] for fleet in fleets] == ["local"]
    assert server.end() == 0


def test_better_b22_on_other_addresses_it_is_not(start: Start) -> None:
    server = start(DSTACK_LOCAL_BACKEND="auto", DSTACK_SERVER_ADMIN_TOKEN="t", DSTACK_SERVER_HOST="0.0.0.0")
    url = server.url().replace("0.0.0.0", "127.0.0.1")
    assert get(f"{url}api/project/main/fleets/list", "t") == (200, [])
    assert server.end() == 0


def test_another_servers_project_main_is_not_overwritten(start: Start, home: Path) -> None:
    path = home / ".dstack/config.yml"
    path.parent.mkdir()
    theirs = {"name": "main", "url": "https://dstack.example", "token": "theirs", "default": True}
    path.write_text(yaml.safe_dump({"projects": [theirs]}))
    server = start()
    server.url()
    assert "is of another server; start with -y" in server.output
    assert yaml.safe_load(path.read_text())["projects"] == [theirs]
    assert server.end() == 0
    server = start(DSTACK_UPDATE_DEFAULT_PROJECT="1")
    url = server.url().rstrip("/")
    assert [project["url"] for project in yaml.safe_load(path.read_text())["projects"]] == [url]
    assert server.end() == 0


def failure(server: Server) -> str:
    """The one line on which it ended."""
    assert server.status() == 1
    last = server.output.strip().splitlines()[-1]
    assert "Traceback" not in server.output
    return last


def test_a_taken_port_is_told(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = failure(start(DSTACK_SERVER_PORT=str(port)))
    assert f"Cannot listen on 127.0.0.1:{port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("projects:\n- name: main\n  backend: []\n", "config.yml:3: "),
        ("projects: [\n", "config.yml:2: this is not valid YAML"),
        ("projects:\n- name: a\n- name: a\n", "config.yml:3: project 'a' is given twice"),
        ("projects: []\nencryption:\n  keys:\n  - {type: aes, name: k, secret: short}\n", "config.yml:4: "),
    ],
)
def test_a_broken_config_is_told_with_file_and_line(start: Start, home: Path, text: str, expected: str) -> None:
    path = home / ".dstack/server/config.yml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert expected in failure(start())


def test_a_second_server_on_the_same_database_is_refused(start: Start) -> None:
    first = start()
    first.url()
    assert "sqlite.db" in failure(start())
    assert first.end() == 0


def test_a_bad_setting_is_told(start: Start) -> None:
    assert "DSTACK_SERVER_PORT=many: expected a whole number" in failure(start(DSTACK_SERVER_PORT="many"))


def test_sigterm_ends_streams_and_the_server(start: Start) -> None:
    server = start(DSTACK_SERVER_ADMIN_TOKEN="t")
    url = server.url()
    request = urllib.request.Request(
        f"{url}api/project/main/runs/watch",
        data=b"{}",
        headers={"Authorization": "Bearer t", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as stream:
        assert json.loads(stream.readline()) == {"type": "ping"}
        assert server.end() == 0
        assert stream.read() == b""


def test_the_port_of_ssh_is_told_and_may_be_off(start: Start) -> None:
    server = start()
    server.url()
    assert re.search(r"^SSH into jobs: port \d+$", server.output, re.MULTILINE), server.output
    assert server.end() == 0
    server = start(DSTACK_SERVER_SSH_PORT="off")
    server.url()
    assert "SSH" not in server.output
    assert server.end() == 0


def test_a_taken_port_of_ssh_ends_only_a_server_that_was_to_use_it(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = start(DSTACK_SERVER_SSH_PORT=str(port))
        assert server.status() == 1
    expected = f"Cannot listen for SSH on 127.0.0.1:{port}: Address already in use; stop what uses the port"
    assert expected in server.output


def test_a_taken_default_port_of_ssh_is_told_and_no_more() -> None:
    settings = load({})
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", DEFAULT_SSH_PORT))
            other.listen()
        except OSError:
            pass  # taken by somebody else, which will do
        with listening.bind(settings) as bound:
            assert (bound.listener, bound.port) == (None, None)
            assert f"127.0.0.1:{DEFAULT_SSH_PORT}: Address already in use" in (bound.message or "")

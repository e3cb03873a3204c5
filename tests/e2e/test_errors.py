"""What goes wrong is told in one clear message where the user looks; nothing is lost, no traceback shown."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import ApiError, Cli, ServerProcess, free_port, wait_for

MakeServer = Callable[..., ServerProcess]
SMALL = 'resources: {cpu: "1..", memory: 0.1GB.., disk: 0.1GB..}\n'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a file system, drops capabilities")


def assert_calm(server: ServerProcess) -> None:
    """The server met nothing that it does not know how to tell."""
    assert "Traceback" not in server.output
    assert " ERROR " not in server.output


def message_of(server: ServerProcess, name: str) -> str:
    """The message of the run's last submission."""
    submission = server.run(name)["jobs"][0]["job_submissions"][-1]
    return str(submission["termination_reason_message"])


def refused(server: ServerProcess, path: str, body: Any) -> tuple[int, str]:
    """Status and first message of a refusal."""
    with pytest.raises(ApiError) as refusal:
        server.post(path, body)
    return refusal.value.status, refusal.value.body["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type: task\ncommands: [a]\nimagee: b\n", ".dstack.yml:3: unknown field 'imagee'; did you mean 'image'?"),
        ("type: task\ncommands: 5\n", ".dstack.yml:2: 'commands' must be a list, not 5"),
        (
            "type: task\ncommands: [a]\nmax_duration: soon\n",
            ".dstack.yml:3: 'max_duration': 'soon' is not a duration",
        ),
        ("type: task\n commands: [a]\n", ".dstack.yml:2: this is not valid YAML: "),
        ("type: tusk\n", ".dstack.yml:1: "),
    ],
)
def test_a_mistake_in_a_configuration_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    """Before any server is asked."""
    home = tmp_path / "nobody"
    home.mkdir()
    cli = Cli(ServerProcess(home))
    cli.write(text)
    status, out = cli("apply", "-y")
    assert (status, out.startswith(message), len(out.splitlines())) == (1, True, 1), out


def test_the_server_refuses_with_the_right_status(cli: Cli) -> None:
    server, apply = cli.server, "/api/project/main/runs/apply"
    spec: dict[str, Any] = {"run_name": "held", "configuration": {"type": "task", "commands": ["sleep 1000"]}}
    unknown = {**spec, "configuration": {**spec["configuration"], "comands": []}}
    status, message = refused(server, apply, {"plan": {"run_spec": unknown}, "force": False})
    assert (status, "comands" in message or "xtra" in message) == (422, True), message
    wrong = {**spec, "configuration": {**spec["configuration"], "commands": 5}}
    assert refused(server, apply, {"plan": {"run_spec": wrong}, "force": False})[0] == 422
    with pytest.raises(ApiError, match="403"):
        server.call("POST", "/api/users/get_my_user", token="no-such-token")
    with pytest.raises(ApiError, match="404"):
        server.post("/api/project/nope/runs/get", {"run_name": "held"})
    server.submit("held", ["sleep 1000"])
    other = {**spec, "configuration": {"type": "task", "commands": ["true"]}}
    status, message = refused(server, apply, {"plan": {"run_spec": other}, "force": False})
    assert (status, "'held'" in message) == (400, True), message
    with pytest.raises(ApiError) as taken:
        server.post("/api/projects/create", {"project_name": "main"})
    assert (taken.value.status, taken.value.body["detail"][0]["code"]) == (400, "resource_exists")
    assert_calm(server)


def test_a_taken_name_is_not_taken_again_unless_the_user_says_so(cli: Cli) -> None:
    cli.write(f"type: task\nname: mine\ncommands: [sleep 1000]\n{SMALL}")
    assert cli("apply", "-y", "-d")[0] == 0
    before = cli.server.run("mine")["id"]
    cli.write(f"type: task\nname: mine\ncommands: [echo other]\n{SMALL}")
    _, out = cli("apply", "-d", stdin="n\n")
    assert "The run mine is active. What changes:" in out
    after = cli.server.run("mine")
    assert (after["id"], after["status"] in ("submitted", "provisioning", "running")) == (before, True)
    assert_calm(cli.server)


def end_of_start(cli: Cli, *argv: str) -> str:
    """The last line of a `dstack server` that cannot start."""
    status, out = cli("server", *argv)
    assert status == 1
    assert "Traceback" not in out
    return out.strip().splitlines()[-1]


def test_a_server_that_cannot_start_says_why(cli: Cli, tmp_path: Path) -> None:
    port = cli.server.port
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use" in end_of_start(cli, "--port", str(port))
    line = end_of_start(cli, "--port", str(free_port()))
    assert line.startswith("The database is locked by another server (process ")
    assert str(cli.server.home / ".dstack/server/data/sqlite.db") in line
    other = ServerProcess(tmp_path / "other")
    (other.home / ".dstack/server").mkdir(parents=True)
    (other.home / ".dstack/server/config.yml").write_text("projects:\n- name: main\n  backend: []\n")
    line = end_of_start(Cli(other), "--port", str(free_port()))
    assert line.startswith(
        "~/.dstack/server/config.yml:3: unknown field 'projects.0.backend'; did you mean 'backends'?"
    )
    assert cli("ps")[0] == 0
    assert_calm(cli.server)


def test_a_command_that_is_not_there(cli: Cli) -> None:
    cli.write(f"type: task\nname: bad\ncommands: [echo before, no-such-command-at-all]\n{SMALL}")
    status, out = cli("apply", "-y")
    assert status == 1
    assert "before\n" in out
    assert "no-such-command-at-all" in out
    assert out.splitlines()[-1].startswith("bad: exited (127)")
    submission = cli.server.run("bad")["jobs"][0]["job_submissions"][-1]
    assert (submission["exit_status"], submission["termination_reason"]) == (127, "container_exited_with_error")
    assert b"no-such-command-at-all" in cli.server.log("bad")
    assert submission["status_message"] == "exited (127)"
    assert_calm(cli.server)


def test_a_shell_that_is_not_there(cli: Cli) -> None:
    cli.write(f"type: task\nname: shell\nshell: /no/such/shell\ncommands: [echo never]\n{SMALL}")
    status, out = cli("apply", "-y")
    assert status == 1
    assert "/no/such/shell" in out
    assert "/no/such/shell" in message_of(cli.server, "shell")
    assert_calm(cli.server)


def apply_image(cli: Cli) -> str:
    """The last line about a run that asks for an image."""
    cli.write(f"type: task\nname: image\nimage: busybox-test:1\ncommands: [echo never]\n{SMALL}")
    status, out = cli("apply", "-y")
    assert status == 1, out
    return out.splitlines()[-1]


def assert_told(cli: Cli, why: str) -> None:
    line = apply_image(cli)
    assert why in line, line
    assert why in message_of(cli.server, "image")
    events = cli.server.post("/api/events/list", {"limit": 100})
    assert any(why in event["message"] for event in events), [event["message"] for event in events]
    assert_calm(cli.server)


def test_an_image_where_there_is_no_docker(make_server: MakeServer, tmp_path: Path) -> None:
    path = tmp_path / "no-docker.sock"
    cli = Cli(make_server(DOCKER_HOST=f"unix://{path}").start())
    assert_told(cli, f"there is no Docker on this host (no socket at {path})")


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_an_image_where_docker_is_forbidden(make_server: MakeServer, tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.chown(path, 65534, 65534)
        path.chmod(0)
        powers = "-dac_override,-dac_read_search"
        prefix = ("setpriv", f"--inh-caps={powers}", f"--bounding-set={powers}")
        cli = Cli(make_server(prefix=prefix, DOCKER_HOST=f"unix://{path}").start())
        assert_told(cli, f"permission denied on {path}")


@pytest.fixture
def small_disk(make_server: MakeServer) -> Iterator[tuple[ServerProcess, Path]]:
    """A server whose logs have a file system of their own, with a quarter of a megabyte of space."""
    server = make_server()
    projects = server.home / ".dstack/server/projects"
    projects.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", projects], check=True)
    try:
        yield server.start(), projects
    finally:
        server.end()
        subprocess.run(["umount", "-l", projects], check=True)


@needs_root
def test_a_full_disk_delays_the_log_and_loses_nothing(small_disk: tuple[ServerProcess, Path]) -> None:
    server, projects = small_disk
    cli = Cli(server)
    cli.write(f"type: task\nname: lines\ncommands: [seq 1 50000]\n{SMALL}")
    assert cli("apply", "-y", "-d")[0] == 0
    wait_for("the message", lambda: "No space left on device" in message_of(server, "lines"))
    server.wait_run(
        "lines", "running", "terminating"
    )  # it waits for space; the run follows its job a moment later
    expected = "".join(f"{number}\n" for number in range(1, 50001))
    status, out = cli("logs", "lines")
    assert (status, expected.startswith(out)) == (0, True)
    assert "output cannot be stored" in server.output
    subprocess.run(["mount", "-o", "remount,size=64m", projects], check=True)
    server.wait_run("lines", "done")
    assert server.log("lines").decode() == expected
    assert "No space left" not in message_of(server, "lines")
    assert_calm(server)

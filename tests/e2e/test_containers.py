"""Runs in real containers, through the command line: how they end, what they print, and the ports they publish."""

from __future__ import annotations

import http.client
import signal
from collections.abc import Callable

import pytest
from tests.e2e.harness import TOKEN, Cli, ServerProcess, wait_for
from tests.fixtures.docker import DockerDaemon
from tests.integration.agent.test_registry import Registry, registry

__all__ = ["registry"]

SMALL = 'resources: {cpu: "1..", memory: 0.1GB.., disk: 0.1GB..}\n'


@pytest.fixture
def cli(make_server: Callable[..., ServerProcess], docker_daemon: DockerDaemon) -> Cli:
    """Its server's machine has that Docker."""
    return Cli(make_server(DOCKER_HOST=f"unix://{docker_daemon.socket}").start())


@pytest.fixture
def dind_cli(make_server: Callable[..., ServerProcess], docker_daemon: DockerDaemon, dind_image: str) -> Cli:
    """The same with an image of `docker: true` that is there."""
    server = make_server(DOCKER_HOST=f"unix://{docker_daemon.socket}", DSTACK_DIND_IMAGE=dind_image)
    return Cli(server.start())


def containers_of(daemon: DockerDaemon, name: str) -> str:
    """Ids of the run's containers, running or not."""
    return daemon.run("ps", "-aq", "--filter", f"name={name}")


def test_a_task_in_a_container(cli: Cli, docker_daemon: DockerDaemon) -> None:
    image = docker_daemon.image
    cli.write(
        f"type: task\nname: good\nimage: {image}\nenv: [COLOUR=blue]\n"
        f"commands: [cat /etc/passwd | wc -l, echo $COLOUR $DSTACK_RUN_NAME]\n{SMALL}"
    )
    status, out = cli("apply", "-y")
    assert status == 0, out
    assert cli("logs", "good") == (0, "2\nblue good\n")
    wait_for("the container to be removed", lambda: containers_of(docker_daemon, "good") == "")


def test_a_task_in_a_container_that_fails(cli: Cli, docker_daemon: DockerDaemon) -> None:
    cli.write(f"type: task\nname: bad\nimage: {docker_daemon.image}\ncommands: [echo out, exit 42]\n{SMALL}")
    status, out = cli("apply", "-y")
    assert status == 1
    assert out.splitlines()[-1].startswith("bad: exited (42)")
    submission = cli.server.run("bad")["jobs"][0]["job_submissions"][-1]
    assert (submission["exit_status"], submission["termination_reason"]) == (42, "container_exited_with_error")
    assert cli("logs", "bad") == (0, "out\n")


def test_an_image_that_is_not_there(cli: Cli) -> None:
    cli.write(f"type: task\nname: none\nimage: no-such-image-at-all:1\ncommands: [echo]\n{SMALL}")
    status, out = cli("apply", "-y")
    assert status == 1
    assert "no-such-image-at-all:1" in out.splitlines()[-1]
    assert "Traceback" not in out + cli.server.output


def test_a_pull_tells_how_far_it_is(cli: Cli, registry: Registry, docker_daemon: DockerDaemon) -> None:
    """The registry stands still until the progress is seen."""

    def progress() -> dict[str, object] | None:
        shown: dict[str, object] | None = cli.server.run("pulled")["latest_job_submission"]["image_pull_progress"]
        return shown

    login = f"registry_auth: {{username: {registry.username}, password: {registry.password}}}\n"
    cli.write(f"type: task\nname: pulled\nimage: {registry.image}\ncommands: [echo up]\n{login}{SMALL}")
    registry.process.send_signal(signal.SIGSTOP)
    try:
        assert cli("apply", "-y", "-d")[0] == 0
        wait_for("the progress of the pull", lambda: progress() is not None)
        assert set(progress() or ()) == {
            "downloaded_bytes", "extracted_bytes", "total_bytes", "is_total_bytes_final"
        }  # fmt: skip
    finally:
        registry.process.send_signal(signal.SIGCONT)
    wait_for("its output", lambda: cli.server.log("pulled") == b"up\n")
    wait_for("its end", lambda: cli.server.run("pulled")["status"] == "done")
    assert progress() is None
    docker_daemon.run("rmi", "-f", registry.image)


def test_a_container_is_stopped(cli: Cli, docker_daemon: DockerDaemon) -> None:
    cli.write(f"type: task\nname: long\nimage: {docker_daemon.image}\ncommands: [echo up, sleep 1000]\n{SMALL}")
    assert cli("apply", "-y", "-d")[0] == 0
    wait_for("its output", lambda: cli.server.log("long") == b"up\n")
    assert cli("stop", "long", "-y")[0] == 0
    assert cli.server.wait_run("long", "terminated")["termination_reason"] == "stopped_by_user"
    wait_for("the container to be removed", lambda: containers_of(docker_daemon, "long") == "")
    assert cli.server.log("long") == b"up\n"


def test_a_task_with_docker_runs_containers_inside(dind_cli: Cli, docker_daemon: DockerDaemon) -> None:
    """Docker is started before the commands, is the job's own, and is gone with it."""
    dind_cli.write(
        "type: task\nname: whale\ndocker: true\nvolumes: [/usr:/usr]\ncommands:\n"
        "- tar -C /opt/busybox -c . | docker import - inner:1 >/dev/null\n"
        "- docker run --rm inner:1 /bin/busybox echo hello from inside\n"
        f"- docker ps -aq | wc -l\n{SMALL}"
    )
    volumes = docker_daemon.run("volume", "ls", "-q")
    status, out = dind_cli("apply", "-y")
    assert status == 0, out
    assert dind_cli("logs", "whale") == (0, "hello from inside\n0\n")
    wait_for("the container to be removed", lambda: containers_of(docker_daemon, "whale") == "")
    wait_for("its images to be removed", lambda: docker_daemon.run("volume", "ls", "-q") == volumes)
    assert "inner" not in docker_daemon.run("images")


def get(server: ServerProcess, path: str, token: str | None) -> tuple[int, bytes]:
    """Status and body, through the server's proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_service_in_a_container_is_published(cli: Cli, docker_daemon: DockerDaemon) -> None:
    cli.write(
        f"type: service\nname: web\nimage: {docker_daemon.image}\nport: 8000\n"
        f"commands: [echo hello > /tmp/index.html, httpd -f -p 8000 -h /tmp]\n{SMALL}"
    )
    status, out = cli("apply", "-y", "-d")
    assert status == 0, out
    path = "/proxy/services/main/web/"
    wait_for("the service", lambda: get(cli.server, path, TOKEN) == (200, b"hello\n"))
    assert get(cli.server, path, None)[0] == 403
    assert get(cli.server, path, "no-such-token")[0] == 403
    assert cli("stop", "web", "-y")[0] == 0
    cli.server.wait_run("web", "terminated")
    assert get(cli.server, path, TOKEN)[0] == 404

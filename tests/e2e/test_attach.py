"""Attaching for real: a server with its SSH door, jobs on the local backend, the CLI and `ssh`."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import (
    ROOT,
    Cli,
    ServerProcess,
    clean_environment,
    end_processes_of,
    free_port,
    processes_with,
    wait_for,
)
from tests.fixtures.docker import DockerDaemon

SMALL = "resources: {cpu: 1.., memory: 0.1GB.., disk: 0.1GB..}\n"
SERVE = (
    "import http.server, os; from pathlib import Path; os.chdir(Path('www'));"
    " http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
)


@pytest.fixture(scope="module", params=["3022", "off"], ids=["by its port", "by WebSocket"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The door by its own port, and by the server's URL alone."""
    home = tmp_path_factory.mktemp("attach") / "home"
    port = "off" if request.param == "off" else str(free_port())
    server = ServerProcess(home, env={"DSTACK_SERVER_SSH_PORT": port})
    try:
        yield server.start()
        server.stop()
    finally:
        end_processes_of(home)


@pytest.fixture
def cli(server: ServerProcess) -> Cli:
    return Cli(server)


def ssh(server: ServerProcess, name: str, command: str) -> str:
    config = server.home / ".ssh" / "config"
    done = subprocess.run(
        ["ssh", "-F", str(config), name, command],
        env=clean_environment(server.home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def entries(server: ServerProcess) -> str:
    path = server.home / ".dstack/ssh/config"
    return path.read_text() if path.exists() else ""


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """The output up to the first line that matches; fails when it ends before."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(f"the output ended without {pattern!r}:\n{said}")


def leave(process: subprocess.Popen[str]) -> str:
    """Ctrl-C, and no to the question whether to stop; the last output."""
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate("n\n", timeout=60)
    assert process.returncode == 0, out
    return out


def fetch(port: int) -> bytes:
    with contextlib.closing(http.client.HTTPConnection("localhost", port, timeout=10)) as connection:
        connection.request("GET", "/page")
        return connection.getresponse().read()


def test_a_dev_environment(cli: Cli, server: ServerProcess) -> None:
    cli.write(f'type: dev-environment\nname: dev\nide: vscode\ninit: ["echo ready > hello"]\n{SMALL}')
    with cli.start("apply", "-y") as process:
        said = read_until(process, "Ctrl-C leaves it")
        link = re.search(r"Open it in VS Code: vscode://vscode-remote/ssh-remote\+dev(/\S+)\n", said)
        assert link is not None, said
        assert "Open a shell in it: ssh dev\n" in said
        assert ssh(server, "dev", f"cd {link[1]} && cat hello; echo $DSTACK_RUN_NAME") == "ready\ndev\n"
        assert ("ProxyCommand" in entries(server)) == (server.env["DSTACK_SERVER_SSH_PORT"] == "off")
        assert "Left the run dev" in leave(process)
    assert entries(server) == ""
    assert "Could not resolve" in ssh(server, "dev", "true")
    with cli.start("attach", "dev") as process:
        read_until(process, "Ctrl-C leaves it")
        process.kill()
        process.wait()
    mark = str(server.home / ".dstack/ssh/config")
    wait_for("its connection to end with it", lambda: not processes_with(mark))
    assert "Host dev\n" in entries(server)
    with cli.start("attach", "dev") as process:
        read_until(process, "Ctrl-C leaves it")
        process.terminate()
        process.communicate(timeout=60)
    assert (process.returncode, entries(server)) == (143, "")
    with cli.start("attach", "dev") as process:
        read_until(process, "Ctrl-C leaves it")
        assert ssh(server, "dev", "cat hello") == "ready\n"
        assert cli("stop", "dev", "-y")[0] == 0
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out.splitlines()[-1]) == (1, "dev: stopped")


def test_ports_and_log_of_a_task(cli: Cli, server: ServerProcess) -> None:
    port, local = free_port(), free_port()
    program = SERVE.format(port=port)
    cli.write(
        f"type: task\nname: web\nports: ['{local}:{port}']\n{SMALL}commands:\n"
        f"  - mkdir -p www && echo the page > www/page && echo see http://0.0.0.0:{port}/page\n"
        f'  - exec python3 -u -c "{program}"\n'
    )
    with cli.start("apply", "-y") as process:
        said = read_until(process, "see http")
        assert f"Its port {port} is here: localhost:{local}\n" in said
        assert said.endswith(f"see http://localhost:{local}/page\n")
        assert wait_for("the page", lambda: fetch(local)) == b"the page\n"
        leave(process)
    status, out = cli("attach", "web", "-p", "7")
    assert (status, out) == (1, f"The job has no port 7; its ports: {port}\n")
    other = free_port()
    with cli.start("attach", "web", "--logs", "-p", f"{other}:{port}") as process:
        assert f"see http://localhost:{other}/page\n" in read_until(process, "see http")
        assert fetch(other) == b"the page\n"
        assert cli("stop", "web", "-y")[0] == 0
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out.splitlines()[-1]) == (1, "web: stopped")


def test_a_port_in_use_submits_nothing(cli: Cli, server: ServerProcess) -> None:
    taken = server.port
    cli.write(f"type: task\nname: never\nports: ['{taken}:80']\ncommands: [sleep 60]\n{SMALL}")
    status, out = cli("apply", "-y")
    assert (status, out.splitlines()[-1]) == (
        1,
        f"The local port {taken} on localhost is in use: end what uses it, or choose another with -p LOCAL:80",
    )
    assert cli("attach", "never") == (1, "Run never does not exist\n")


def test_what_cannot_be_attached_to(cli: Cli, server: ServerProcess) -> None:
    server.submit("over", ["true"], resources=json.loads('{"cpu": "1..", "memory": "0.1GB..", "disk": "0.1GB.."}'))
    server.wait_run("over", "done")
    assert cli("attach", "over") == (1, "The run over is over (done); `dstack logs over` shows what it wrote\n")
    assert cli("attach", "over", "--since", "5m") == (
        1,
        "--since says from when on the log is shown: give --logs too\n",
    )


def python(server: ServerProcess, code: str) -> str:
    """What a program says that uses the Python API at the server's home."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=clean_environment(server.home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_example_of_the_python_api(server: ServerProcess) -> None:
    page = (ROOT / "docs/reference/python-api.md").read_text()
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    assert python(server, code) == "hello world\nhello-api done\n"


def test_ports_by_the_python_api(server: ServerProcess) -> None:
    port = free_port()
    code = f"""
        import urllib.request
        from dstack.api import Client, Resources, Task
        small = Resources(cpu="1..", memory="0.1GB..", disk="0.1GB..")
        serve = {SERVE.format(port=port)!r}
        commands = ["mkdir -p www; echo the page > www/page", f'exec python3 -u -c "{{serve}}" 2>&1']
        with Client.from_config() as client:
            task = Task(name="api", commands=commands, ports=["*:{port}"], resources=small)
            run = client.runs.apply_configuration(task)
            assert run.attach()
            log = run.logs()
            while b"Serving" not in next(log):
                pass
            log.close()
            assert run.attach(ports_overrides={{}})
            print(urllib.request.urlopen(f"http://localhost:{{run.ports[{port}]}}/page").read())
            run.detach()
            print(run.ports, run.backend, run.hostname)
            client.runs.get("api").stop(abort=True)
            print(run.wait().value, run.attach())
    """
    assert python(server, textwrap.dedent(code)) == ("b'the page\\n'\nNone remote 127.0.0.1\nterminated False\n")


def test_nothing_is_left_behind(server: ServerProcess, cli: Cli) -> None:
    cli.write(f"type: task\nname: seen\ncommands: [echo seen, sleep 1]\n{SMALL}")
    assert cli("apply", "-y")[0] == 0
    folder = Path(server.home / ".dstack/ssh")
    assert sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".known_hosts")) == []
    assert (server.home / ".ssh/config").read_text() == f"Include {folder / 'config'}\n"


def test_a_dev_environment_in_a_container(
    make_server: Callable[..., ServerProcess], docker_daemon: DockerDaemon
) -> None:
    cli = Cli(make_server(DOCKER_HOST=f"unix://{docker_daemon.socket}").start())
    port = free_port()
    cli.write(
        f"type: dev-environment\nname: box\nimage: {docker_daemon.image}\nide: zed\nports: ['*:{port}']\n{SMALL}"
        f'init: [mkdir /www, echo the page > /www/page, "httpd -p 127.0.0.1:{port} -h /www"]\n'
    )
    with cli.start("apply", "-y") as process:
        said = read_until(process, "Ctrl-C leaves it")
        assert "Open it in Zed: zed://ssh/box/" in said
        local = re.search(rf"Its port {port} is here: localhost:(\d+)\n", said)
        assert local is not None
        assert wait_for("the page", lambda: fetch(int(local[1]))) == b"the page\n"
        assert ssh(cli.server, "box", "cat /www/page; ls /bin/busybox; id -un") == "the page\n/bin/busybox\nroot\n"
        assert cli("stop", "box", "-y")[0] == 0
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out.splitlines()[-1]) == (1, "box: stopped")

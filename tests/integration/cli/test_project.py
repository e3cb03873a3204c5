"""`dstack project` and where the project to work in comes from."""

from __future__ import annotations

import stat
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import ReplayServer, load_capture


def test_the_first_project_becomes_the_default(bare_cli: Cli, server: ReplayServer) -> None:
    server.replay("01")
    status, out = bare_cli("project", "add", "--name", "main", "--url", server.url + "/", "--token", "tok")
    assert (status, out) == (0, "Project main is on file as the default project.\n")
    path = bare_cli.home / ".dstack" / "config.yml"
    assert path.read_text() == f"projects:\n- default: true\n  name: main\n  token: tok\n  url: {server.url}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server.bodies("/api/projects/main/get") == [None]
    headers = server.requests[0][1]
    assert headers["Content-Length"] == "0"
    assert "Content-Type" not in headers


@pytest.mark.parametrize("capture", ["02", "03"])
def test_nothing_is_written_when_the_server_refuses(bare_cli: Cli, server: ReplayServer, capture: str) -> None:
    server.replay(capture)
    name = load_capture(capture)["request"]["path"].split("/")[3]
    status, out = bare_cli("project", "add", "--name", name, "--url", server.url, "--token", "bad", "-y")
    assert status == 1
    assert len(out.splitlines()) == 1
    assert not (bare_cli.home / ".dstack" / "config.yml").exists()


def test_a_second_project_asks(cli: Cli, server: ReplayServer) -> None:
    server.on("/api/projects/other/get", (200, {}))
    add = ("project", "add", "--name", "other", "--url", server.url, "--token", "tok")
    assert cli(*add, stdin="n\n") == (
        0,
        "Make other the default project instead of main? [y/N]: Project other is on file.\n",
    )
    assert cli(*add) == (
        1,
        "Make other the default project instead of main? [y/N]: \n"
        "There is nobody to answer: pass -y to agree beforehand\n",
    )
    assert cli(*add, "-y") == (0, "Project other is on file as the default project.\n")
    assert cli("project") == (
        0,
        f"PROJECT  URL                     DEFAULT\nmain     {server.url}\nother    {server.url}  ✓\n".replace(
            "URL                     ", "URL".ljust(len(server.url) + 2)
        ),
    )


def test_set_default_and_delete(cli: Cli) -> None:
    assert cli("project", "set-default", "nope") == (
        1,
        "There is no project 'nope' on file: see `dstack project list`\n",
    )
    assert cli("project", "delete", "--name", "nope", "-y") == (0, "There is no project nope on file.\n")
    assert cli("project", "delete", "--name", "main", "-y") == (0, "Project main is no longer on file.\n")
    status, out = cli("ps")
    assert (status, out.splitlines()) == (
        1,
        [
            "There is no default project: add one with `dstack project add`,"
            " or choose one with --project or `dstack project set-default`"
        ],
    )


def test_the_environment_replaces_the_file(
    bare_cli: Cli, server: ReplayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.replay("06")
    monkeypatch.setenv("DSTACK_SERVER_URL", server.url)
    monkeypatch.setenv("DSTACK_TOKEN", "from-env")
    monkeypatch.setenv("DSTACK_PROJECT", "main")
    assert bare_cli("ps")[0] == 0
    assert server.requests[0][1]["Authorization"] == "Bearer from-env"


def test_a_broken_file_is_one_line(bare_cli: Cli) -> None:
    path = bare_cli.home / ".dstack" / "config.yml"
    path.parent.mkdir(parents=True)
    path.write_text("projects: [{name: main, url: x, tokn: y}]")
    assert bare_cli("ps") == (1, f"{path} is broken: projects[0] needs a text 'token'\n")


def test_no_server_is_one_line(bare_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dstack.api.rest.connection.RETRY_DELAY", 0)
    status, out = bare_cli("project", "add", "--name", "m", "--url", "http://127.0.0.1:9", "--token", "t")
    assert (status, out) == (
        1,
        "Cannot connect to the server at http://127.0.0.1:9: Connection refused."
        " Is it running? (`dstack server` starts one)\n",
    )


@pytest.mark.parametrize("url", ["nope", "ftp://host", "http://", "http://host:port", "http://[::"])
def test_what_is_no_url_is_told(bare_cli: Cli, url: str) -> None:
    assert bare_cli("project", "add", "--name", "m", "--url", url, "--token", "t") == (
        1,
        f"{url.rstrip('/')!r} is not the URL of a server: write http://, https:// or http+unix:// and a host\n",
    )


def test_calls_are_in_the_log_file(cli: Cli, server: ReplayServer) -> None:
    server.replay("27")
    cli("secret")
    line = (cli.home / ".dstack/logs/cli/latest.log").read_text()
    assert line.endswith(f" DEBUG POST {server.url}/api/project/main/secrets/list 200\n")


def test_a_server_on_a_unix_socket(bare_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dstack.api.rest.connection.RETRY_DELAY", 0)
    socket_url = f"http+unix://{quote(str(tmp_path / 'server.sock'), safe='')}"
    status, out = bare_cli("project", "add", "--name", "m", "--url", socket_url, "--token", "t")
    assert (status, out.split(":")[0]) == (1, "Cannot connect to the server at http+unix")

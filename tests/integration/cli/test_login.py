"""`login`: the browser, which here is a thread that follows the URL, brings the proof."""

from __future__ import annotations

import threading
import urllib.request
from typing import Any

import pytest
import yaml
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import Answer, ReplayServer

PROVIDERS = "/api/auth/list_providers"


def provider(name: str, *, enabled: bool = True) -> dict[str, Any]:
    return {"name": name, "enabled": enabled}


def test_a_server_without_providers_says_what_to_do(bare_cli: Cli, server: ReplayServer) -> None:
    server.on(PROVIDERS, (200, [provider("github", enabled=False)]))
    status, out = bare_cli("login", "--url", server.url)
    assert (status, "dstack project add" in out, out.count("\n")) == (1, True, 1)


def test_which_of_several(bare_cli: Cli, server: ReplayServer) -> None:
    server.on(PROVIDERS, (200, [provider("github"), provider("google")]))
    status, out = bare_cli("login", "--url", server.url)
    assert (status, out) == (
        1,
        "There are several to log in with: choose one with --provider, of github, google\n",
    )
    assert "There is no 'x' to log in with" in bare_cli("login", "--url", server.url, "-p", "x")[1]


def test_the_projects_of_the_user_are_on_file(
    bare_cli: Cli, server: ReplayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def authorize(body: Any) -> Answer:
        return 200, {"authorization_url": f"http://127.0.0.1:{body['local_port']}/auth/callback?code=c&state=s"}

    threads = []

    def browse(url: str) -> bool:
        threads.append(threading.Thread(target=lambda: urllib.request.urlopen(url, timeout=30).read()))
        threads[-1].start()
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    server.on(PROVIDERS, (200, [provider("github")]))
    server.on("/api/auth/github/authorize", authorize)
    server.on("/api/auth/github/callback", (200, {"username": "me", "creds": {"token": "t1"}}))
    server.on("/api/projects/list", (200, [{"project_name": "lab"}, {"project_name": "team"}]))
    status, out = bare_cli("login", "--url", server.url)
    threads[0].join()
    assert (status, out.splitlines()[-1]) == (0, "On file: lab, team.")
    assert server.bodies("/api/auth/github/callback") == [{"code": "c", "state": "s"}]
    assert server.bodies("/api/projects/list") == [{"include_not_joined": False}]
    stored = yaml.safe_load((bare_cli.home / ".dstack" / "config.yml").read_text())["projects"]
    assert stored == [
        {"default": True, "name": "lab", "token": "t1", "url": server.url},
        {"default": False, "name": "team", "token": "t1", "url": server.url},
    ]

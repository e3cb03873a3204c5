"""The CLI in this process, with a home of its own and a server that answers as recorded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.cli.replay import ReplayServer

from dstack.cli import main


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    with ReplayServer().running() as server:
        yield server


@dataclass
class Cli:
    home: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *argv: str, stdin: str = "") -> tuple[int, str]:
        """Exit status and stdout."""
        self.monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            status = main.run(list(argv))
        except SystemExit as exit:
            status = int(exit.code or 0)
        return status, self.capsys.readouterr().out


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DSTACK_PROJECT", "DSTACK_SERVER_URL", "DSTACK_TOKEN", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def bare_cli(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Without any project on file."""
    return Cli(home, capsys, monkeypatch)


@pytest.fixture
def cli(bare_cli: Cli, server: ReplayServer) -> Cli:
    """With the replaying server's project main on file."""
    path = bare_cli.home / ".dstack" / "config.yml"
    path.parent.mkdir(parents=True)
    path.write_text(f"projects: [{{default: true, name: main, token: tok, url: '{server.url}'}}]")
    return bare_cli

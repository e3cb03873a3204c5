"""Servers as processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import Cli, ServerProcess, end_processes_of


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Makes servers on homes under the test's folder; ends all that is left of them."""

    made: list[ServerProcess] = []

    def make(name: str = "home", *, prefix: tuple[str, ...] = (), **env: str) -> ServerProcess:
        made.append(ServerProcess(tmp_path / name, env=env, prefix=prefix))
        return made[-1]

    yield make
    for server in made:
        server.end()
    end_processes_of(tmp_path)


@pytest.fixture
def server(make_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A healthy server with its local fleet."""
    return make_server().start()


@pytest.fixture
def cli(server: ServerProcess) -> Cli:
    """The command line beside that server, whose start has put its project main on file."""
    return Cli(server)

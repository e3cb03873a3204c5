"""Ctrl-C while staying with a run, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import Answer, Lines, ReplayServer, recorded

PROJECT = "/api/project/main"
ROOT = Path(__file__).parents[3]


class Waiting:
    """A run that goes on until it is stopped."""

    def __init__(self, server: ReplayServer) -> None:
        self.watched = threading.Event()
        self.ended = threading.Event()
        self.polled = threading.Event()
        server.replay("11", "13", "14")
        server.on(f"{PROJECT}/runs/watch", self._watch)
        server.on(f"{PROJECT}/runs/stop", (200, None))
        server.on(f"{PROJECT}/runs/get", self._get)
        self.is_stoppable = True

    def _watch(self, body: Any) -> Answer:
        self.watched.set()
        self.ended.wait(60)
        return 200, Lines([])

    def _get(self, body: Any) -> Answer:
        self.polled.set()
        status = "terminated" if self.is_stoppable else "terminating"
        return 200, recorded("14")[1] | {"status": status, "status_message": "stopped"}


@pytest.fixture
def waiting(server: ReplayServer) -> Iterator[Waiting]:
    waiting = Waiting(server)
    yield waiting
    waiting.ended.set()


def _start(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    (tmp_path / ".dstack.yml").write_text("type: task\nname: t1\ncommands: [sleep 100]\n")
    environ = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "dstack", "apply", *flags]
    return subprocess.Popen(
        command, cwd=tmp_path, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _finish(process: subprocess.Popen[str], text: str | None = None) -> tuple[int, list[str]]:
    out, _ = process.communicate(text, timeout=30)
    return process.returncode, out.splitlines()


def test_with_yes_it_leaves_the_run(cli: Cli, waiting: Waiting, server: ReplayServer, tmp_path: Path) -> None:
    process = _start(tmp_path, "-y")
    assert waiting.watched.wait(30)
    process.send_signal(signal.SIGINT)
    status, lines = _finish(process)
    assert (status, lines[-1]) == (
        0,
        "Left the run t1; see it with `dstack logs -f t1`, end it with `dstack stop t1`.",
    )
    assert server.bodies(f"{PROJECT}/runs/stop") == []


def test_it_asks_and_stops(cli: Cli, waiting: Waiting, server: ReplayServer, tmp_path: Path) -> None:
    process = _start(tmp_path)
    assert process.stdin is not None
    process.stdin.write("y\n")
    process.stdin.flush()
    assert waiting.watched.wait(30)
    process.send_signal(signal.SIGINT)
    status, lines = _finish(process, "y\n")
    assert (status, lines[-1]) == (0, "Stop the run t1 before leaving it? [y/N]: t1: stopped")
    assert server.bodies(f"{PROJECT}/runs/stop") == [{"runs_names": ["t1"], "abort": False}]


def test_a_second_one_aborts(cli: Cli, waiting: Waiting, server: ReplayServer, tmp_path: Path) -> None:
    waiting.is_stoppable = False
    process = _start(tmp_path)
    assert process.stdin is not None
    process.stdin.write("y\ny\n")
    process.stdin.flush()
    assert waiting.watched.wait(30)
    process.send_signal(signal.SIGINT)
    assert waiting.polled.wait(30)
    process.send_signal(signal.SIGINT)
    status, lines = _finish(process)
    assert (status, lines[-1]) == (0, "Stop the run t1 before leaving it? [y/N]: Aborting t1.")
    assert [body["abort"] for body in server.bodies(f"{PROJECT}/runs/stop")] == [False, True]

"""What the shell is told when it asks how a line can go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import ReplayServer, recorded

CASES = [
    ("dstack vol", ["volume"]),
    ("dstack stop ", ["d1", "t1"]),
    ("dstack stop t", ["t1"]),
    ("dstack fleet delete ", ["f1"]),
    ("dstack volume get ", ["v1"]),
    ("dstack secret get ", ["tok"]),
    ("dstack event --target-run t", ["t1"]),
    ("dstack ps --project m", ["main"]),
    ("dstack project set-default ", ["main"]),
    ("dstack gateway delete ", []),
]


@pytest.mark.parametrize(("line", "expected"), CASES, ids=[line for line, _ in CASES])
def test_how_a_line_can_go_on(
    cli: Cli, server: ReplayServer, tmp_path: Path, line: str, expected: list[str]
) -> None:
    server.on("/api/runs/list", recorded("06"))
    server.replay("10", "25", "27")
    words = [word.strip() for word in complete(line, tmp_path)]
    assert [word for word in words if not word.startswith("-")] == expected


def complete(line: str, folder: Path) -> list[str]:
    """As bash does it: the words come through file descriptor 8."""
    answer = folder / "answer"
    environ = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", "from dstack.cli.main import main; main()"]
    subprocess.run(command, env=environ, check=False, capture_output=True, timeout=60)
    return answer.read_text().splitlines()


def test_the_scripts(bare_cli: Cli) -> None:
    for shell in ("bash", "zsh"):
        status, out = bare_cli("completion", shell)
        assert (status, "_ARGCOMPLETE" in out) == (0, True)
    assert bare_cli("completion", "fish")[0] == 2

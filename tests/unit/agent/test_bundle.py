"""The agent as one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from dstack.agent import bundle

ROOT = Path(bundle.__file__).parent


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_the_agent_imports_the_standard_library_alone() -> None:
    for path in ROOT.rglob("*.py"):
        foreign = {
            name
            for name in imported_modules(path)
            if name.split(".")[0] not in sys.stdlib_module_names
            and not name.startswith("dstack.agent")
            and name != "dstack"
        }
        assert not foreign, f"{path.name} imports {foreign}"


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    bundle.build(str(tmp_path / "one.pyz"))
    bundle.build(str(tmp_path / "two.pyz"))
    assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()


def test_the_file_runs_by_itself(tmp_path: Path) -> None:
    bundle.build(str(tmp_path / "agent.pyz"))
    command = [sys.executable, "-I", str(tmp_path / "agent.pyz"), "--help"]
    assert "--exit-when-idle" in subprocess.run(command, capture_output=True, check=True, text=True).stdout

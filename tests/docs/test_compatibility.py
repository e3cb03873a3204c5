"""The page about compatibility names each scenario that is run, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_names_the_scenarios() -> None:
    page = (ROOT / "docs/reference/compatibility.md").read_text()
    tests = (ROOT / "tests/e2e/test_published_client.py").read_text()
    named = re.findall(r"\| `(test_\w+)` \|$", page, re.MULTILINE)
    assert sorted(named) == sorted(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))

"""The page about the command line is what the parser says."""

from __future__ import annotations

from tools.cli_reference import TARGET, render


def test_the_page_is_fresh() -> None:
    assert TARGET.read_text(encoding="utf-8") == render(), "run `python -m tools.cli_reference`"

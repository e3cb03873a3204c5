"""Every example is valid, and the server can make jobs of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dstack.core.configurations import parse_apply_configuration

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.dstack.yml"))


def test_there_are_examples() -> None:
    assert {path.parent.name for path in EXAMPLES} >= {"hello"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_example_is_valid(path: Path) -> None:
    configuration = parse_apply_configuration(yaml.safe_load(path.read_text()))
    assert configuration.type in path.name or path.name.startswith(configuration.type)

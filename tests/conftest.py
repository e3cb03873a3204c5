"""What every test gets: a home of its own, free ports, guarded processes, and the parts of `tests/fixtures`."""

from __future__ import annotations

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"

pytest.register_assert_rewrite("tests.fixtures")  # before one of them imports another
pytest_plugins = [f"tests.fixtures.{module.stem}" for module in sorted(FIXTURES.glob("*.py"))]

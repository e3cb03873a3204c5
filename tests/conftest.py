"""What every test gets: a home of its own, free ports, guarded processes, and the parts of `tests/fixtures`."""

from __future__ import annotations

from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"

pytest_plugins = [f"tests.fixtures.{module.stem}" for module in sorted(FIXTURES.glob("*.py"))]

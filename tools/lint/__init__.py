"""Rules of this project that ruff cannot say. `python -m tools.lint` checks `src`."""

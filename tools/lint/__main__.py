"""Runs every rule over every module of `src`; exits 1 when one is broken."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.lint.rules import check_module

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    problems = [problem for path in sorted((ROOT / "src").rglob("*.py")) for problem in check_module(path, ROOT)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

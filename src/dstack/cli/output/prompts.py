"""Questions to the person at the terminal."""

from __future__ import annotations

import sys

from dstack.cli.errors import CliError


def confirm(question: str, *, default: bool = False) -> bool:
    """The answer to a yes-no question; the default for an empty one. Raises CliError when nobody can answer."""
    hint = "[Y/n]" if default else "[y/N]"
    while True:
        print(f"{question} {hint}: ", end="", flush=True)
        answer = sys.stdin.readline()
        if not answer:
            print()
            raise CliError("There is nobody to answer: pass -y to agree beforehand")
        if answer.strip().lower() in ("y", "yes"):
            return True
        if answer.strip().lower() in ("n", "no"):
            return False
        if not answer.strip():
            return default
        print("Please answer y or n.")

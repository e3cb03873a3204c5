"""Writes docs/reference/cli.md from the parser: `python -m tools.cli_reference`; `--check` only compares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from dstack.cli.commands.apply import TYPES, add_type_arguments
from dstack.cli.main import build_parser
from dstack.cli.registry import COMMANDS

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# The command line

*Generated from the parser by `python -m tools.cli_reference`; a test holds it fresh.*

`--project NAME` chooses the project; without it `$DSTACK_PROJECT`, then the default project of
`~/.dstack/config.yml`. For commands with actions it stands before the action.

| Exit status | Meaning |
|---|---|
| 0 | done; also: the answer was no, nothing had to be done, the run was left running |
| 1 | refused, failed or not found: one message on stdout |
| 2 | the command was not understood: usage on stderr |
| 130 | interrupted |
"""


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    subparsers = _subparsers(build_parser(complete=True))
    assert subparsers is not None
    for command in COMMANDS:
        aliases = f" (also `{'`, `'.join(command.aliases)}`)" if command.aliases else ""
        yield f"## `dstack {command.name}`{aliases}\n\n{command.help}.\n"
        parser = subparsers.choices[command.name]
        yield from _describe(parser)
        actions = _subparsers(parser)
        for name, action in (actions.choices if actions else {}).items():
            yield f"### `dstack {command.name} {name}`\n"
            yield from _describe(action)
        if command.name == "apply":
            yield from _describe_types()


def _describe_types() -> Iterator[str]:
    for kind in TYPES:
        parser = argparse.ArgumentParser(add_help=False)
        add_type_arguments(parser, kind)
        flags = sorted(f"`{action.option_strings[-1]}`" for action in parser._actions)
        yield f"Of these, flags by type that fit a {kind}: {', '.join(flags)}.\n"


def _describe(parser: argparse.ArgumentParser) -> Iterator[str]:
    rows = [row for action in parser._actions if (row := _row(action)) is not None]
    if rows:
        yield "\n".join(["| Argument | Meaning |", "|---|---|", *rows]) + "\n"


def _row(action: argparse.Action) -> str | None:
    if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
        return None
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    if action.option_strings and action.nargs != 0:
        names += f" `{_metavar(action)}`"
    return f"| {names.replace('|', chr(92) + '|')} | {(action.help or '').replace('|', chr(92) + '|')} |"


def _metavar(action: argparse.Action) -> str:
    if action.metavar is None and action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser] | None:
    return next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)


def main() -> int:
    """Writes the page, or says whether it is fresh."""
    text = render()
    if "--check" in sys.argv:
        return 0 if TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

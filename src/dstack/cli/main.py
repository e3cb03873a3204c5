"""The `dstack` command: chooses the subcommand, imports it alone, and turns errors into messages."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from dstack import __version__
from dstack.cli.completers import completes
from dstack.cli.registry import COMMANDS, Command, find_command
from dstack.core.errors import DstackError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits with its status."""
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: list[str]) -> int:
    """The exit status of the command; messages for the user are on stdout, usage errors on stderr."""
    try:
        return _dispatch(argv)
    except DstackError as error:
        print(error)
        return int(getattr(error, "exit_status", 1))
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(error)
        return 1


def build_parser(*, only: Command | None = None, complete: bool = False) -> argparse.ArgumentParser:
    """The parser. Only the command `only` has its arguments, or all have with `complete`."""
    parser = argparse.ArgumentParser(
        prog="dstack", description="Run AI workloads on any compute.", formatter_class=HelpFormatter
    )
    parser.add_argument("-v", "--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="Commands")
    for command in COMMANDS:
        subparser = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help}.",
            aliases=list(command.aliases),
            add_help=command.name != "apply",
            formatter_class=HelpFormatter,
        )
        if complete or command is only:
            _fill(subparser, command)
    return parser


class HelpFormatter(argparse.HelpFormatter):
    """Help with room for the names of options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def _dispatch(argv: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        complete_words()
    name = next((word for word in argv if not word.startswith("-")), None)
    command = find_command(name) if name is not None else None
    parser = build_parser(only=command)
    args, extra = parser.parse_known_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    rest = _rest_after_dashes(argv, extra)
    if rest is None or (rest and name != "apply"):
        print(f"Unrecognized arguments: {' '.join(extra)}; see `dstack {name} --help`")
        return 1
    args.run_args = rest
    with contextlib.ExitStack() as args.open_connections:
        return int(importlib.import_module(find(args.command).module).run(args))


def find(name: str) -> Command:
    """The command of that name, which the parser has checked."""
    command = find_command(name)
    assert command is not None
    return command


def complete_words() -> None:
    """Answers the shell, which asks how the words so far can go on."""
    import argcomplete

    argcomplete.autocomplete(build_parser(complete=True))


def _fill(subparser: argparse.ArgumentParser, command: Command) -> None:
    if command.has_project:
        project = subparser.add_argument(
            "--project", metavar="NAME", help="The project (default: $DSTACK_PROJECT, then the file's)"
        )
        completes(project, "projects")
    importlib.import_module(command.module).register(subparser)


def _rest_after_dashes(argv: list[str], extra: list[str]) -> list[str] | None:
    """What stands after `--`; None when there is something that the parser does not know before it."""
    rest = argv[argv.index("--") + 1 :] if "--" in argv else []
    return rest if [word for word in extra if word != "--"] == rest else None


if __name__ == "__main__":
    main()

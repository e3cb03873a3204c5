"""`dstack run get`: a run as the API gives it."""

from __future__ import annotations

import argparse
import json

from dstack.cli.completers import completes
from dstack.cli.context import connect
from dstack.cli.errors import CliError


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="Show a run")
    add_get_arguments(get, "run")


def add_get_arguments(parser: argparse.ArgumentParser, kind: str, *, has_id: bool = True) -> None:
    """Adds the arguments of showing one object by name or, with `has_id`, by id."""
    name = parser.add_argument("name", metavar="NAME", nargs="?" if has_id else None, help=f"The {kind}")
    completes(name, f"{kind}s")
    if has_id:
        parser.add_argument("--id", metavar="UUID", help=f"The {kind}'s id, instead of its name")
    parser.add_argument("--json", action="store_true", required=True, help="Show it as JSON")


def check_get_arguments(args: argparse.Namespace) -> None:
    """Raises CliError unless there is either a name or an id."""
    if (args.name is None) == (args.id is None):
        raise CliError("Give either a name or --id")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    check_get_arguments(args)
    context = connect(args)
    print(json.dumps(context.rest.runs.get(context.project, name=args.name, run_id=args.id), indent=2))
    return 0

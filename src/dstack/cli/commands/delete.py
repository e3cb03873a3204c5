"""`dstack delete`: removes what a configuration made."""

from __future__ import annotations

import argparse

from dstack.cli.context import connect
from dstack.cli.errors import CliError
from dstack.cli.output.prompts import confirm
from dstack.cli.waiting import delete_fleet


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="The configuration (default: .dstack.yml, then .dstack.yaml)"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="Do not ask")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from dstack.cli.files import load_configuration

    configuration = load_configuration(args.file).configuration
    name, kind = configuration.name, str(getattr(configuration, "type", ""))
    if name is None:
        raise CliError("The configuration has no 'name', so nothing can be told to be its own")
    if kind in ("gateway", "volume"):
        raise CliError(f"A {kind} cannot be deleted by its configuration")
    context = connect(args)
    find = context.rest.fleets.get if kind == "fleet" else context.rest.runs.get
    find(context.project, name=name)
    what = f"the {'fleet' if kind == 'fleet' else 'run'} {name}"
    if not (args.yes or confirm(f"Delete {what}?")):
        return 0
    if kind == "fleet":
        delete_fleet(context, name)
    else:
        context.rest.runs.delete(context.project, [name])
    print(f"Deleted {what}.")
    return 0

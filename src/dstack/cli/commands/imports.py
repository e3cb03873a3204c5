"""`dstack import`: fleets and gateways of other projects that this one may use."""

from __future__ import annotations

import argparse
from typing import Any

from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.errors import CliError
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_table

HEADERS = ("NAME", "FLEETS", "GATEWAYS")


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="Show what other projects share with this one")
    delete = actions.add_parser("delete", help="Use it no more")
    completes(delete.add_argument("name", metavar="PROJECT/NAME", help="The other project's export"), "imports")
    delete.add_argument("-y", "--yes", action="store_true", help="Do not ask")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    context = connect(args)
    if args.action == "delete":
        _delete(context, args)
    else:
        print_table(HEADERS, [_row(one) for one in context.rest.imports.list(context.project)])
    return 0


def _row(one: dict[str, Any]) -> list[str]:
    export = one["export"]
    return [
        f"{export['project_name']}/{export['name']}",
        ", ".join(fleet["name"] for fleet in export["exported_fleets"]),
        ", ".join(gateway["name"] for gateway in export.get("exported_gateways") or []),
    ]


def _delete(context: Context, args: argparse.Namespace) -> None:
    project, slash, name = args.name.partition("/")
    if not (project and slash and name):
        raise CliError(
            f"{args.name!r} is not an import: write the other project and its export, as in team/shared"
        )
    if args.yes or confirm(f"Delete the import {args.name}?"):
        context.rest.imports.delete(context.project, project, name)
        print(f"Deleted the import {args.name}.")

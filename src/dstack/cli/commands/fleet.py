"""`dstack fleet`: the fleets of a project."""

from __future__ import annotations

import argparse
import json

from dstack.cli.commands.run import add_get_arguments, check_get_arguments
from dstack.cli.commands.volume import add_list_arguments
from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.output.fleets import print_fleets
from dstack.cli.output.live import show
from dstack.cli.output.prompts import confirm
from dstack.cli.waiting import delete_fleet


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_list_arguments(parser, default=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    add_list_arguments(actions.add_parser("list", help="Show fleets"), default=argparse.SUPPRESS)
    add_get_arguments(actions.add_parser("get", help="Show a fleet"), "fleet")
    delete = actions.add_parser("delete", help="Delete a fleet or some of its instances")
    completes(delete.add_argument("name", metavar="NAME", help="The fleet"), "fleets")
    delete.add_argument(
        "-i",
        "--instance",
        type=int,
        action="append",
        metavar="N",
        default=[],
        help="Only this instance (repeatable)",
    )
    delete.add_argument("-y", "--yes", action="store_true", help="Do not ask")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    actions = {"get": _get, "delete": _delete}
    return actions.get(args.action, _list)(args)


def _list(args: argparse.Namespace) -> int:
    context = connect(args)
    show(lambda: _print_fleets(context, verbose=args.verbose), watch=args.watch)
    return 0


def _print_fleets(context: Context, *, verbose: bool) -> None:
    print_fleets(context.rest.fleets.list(context.project), context.project, verbose=verbose)


def _get(args: argparse.Namespace) -> int:
    check_get_arguments(args)
    context = connect(args)
    print(json.dumps(context.rest.fleets.get(context.project, name=args.name, fleet_id=args.id), indent=2))
    return 0


def _delete(args: argparse.Namespace) -> int:
    context = connect(args)
    context.rest.fleets.get(context.project, name=args.name)
    what = f"the fleet {args.name}"
    if args.instance:
        what = f"instance {', '.join(map(str, args.instance))} of {what}"
    if args.yes or confirm(f"Delete {what}?"):
        delete_fleet(context, args.name, args.instance)
        print(f"Deleted {what}.")
    return 0

"""`dstack volume`: disks that outlive the instances they are attached to."""

from __future__ import annotations

import argparse
import json

from dstack.cli.commands.run import add_get_arguments
from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.output.live import show
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_table
from dstack.cli.output.values import now_utc
from dstack.cli.output.volumes import volume_headers, volume_row


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_list_arguments(parser, default=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    add_list_arguments(actions.add_parser("list", help="Show volumes"), default=argparse.SUPPRESS)
    add_get_arguments(actions.add_parser("get", help="Show a volume"), "volume", has_id=False)
    delete = actions.add_parser("delete", help="Delete a volume and what is on it")
    completes(delete.add_argument("name", metavar="NAME", help="The volume"), "volumes")
    delete.add_argument("-y", "--yes", action="store_true", help="Do not ask")


def add_list_arguments(parser: argparse.ArgumentParser, *, default: bool | str) -> None:
    """Adds the arguments of showing a list, for a group and for its action `list` alike."""
    parser.add_argument("-w", "--watch", action="store_true", default=default, help="Go on showing, as it changes")
    parser.add_argument("-v", "--verbose", action="store_true", default=default, help="Show more columns")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    context = connect(args)
    if args.action == "get":
        print(json.dumps(context.rest.volumes.get(context.project, args.name), indent=2))
    elif args.action == "delete":
        _delete(context, args)
    else:
        show(lambda: _print_volumes(context, verbose=args.verbose), watch=args.watch)
    return 0


def _print_volumes(context: Context, *, verbose: bool) -> None:
    headers, now = volume_headers(verbose=verbose), now_utc()
    print_table(headers, [volume_row(one, headers, now) for one in context.rest.volumes.list(context.project)])


def _delete(context: Context, args: argparse.Namespace) -> None:
    from dstack.cli.waiting import delete_volume

    context.rest.volumes.get(context.project, args.name)
    if args.yes or confirm(f"Delete the volume {args.name} and what is on it?"):
        delete_volume(context, args.name)
        print(f"Deleted the volume {args.name}.")

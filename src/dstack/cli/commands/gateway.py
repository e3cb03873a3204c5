"""`dstack gateway`: the machines that publish services under a domain."""

from __future__ import annotations

import argparse
import json

from dstack.cli.commands.run import add_get_arguments
from dstack.cli.commands.volume import add_list_arguments
from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.errors import CliError
from dstack.cli.output.gateways import gateway_headers, gateway_rows
from dstack.cli.output.live import show
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_table
from dstack.cli.output.values import now_utc


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    _add_list_arguments(parser, default=False, format_default="plain")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="Show gateways")
    _add_list_arguments(listing, default=argparse.SUPPRESS, format_default=argparse.SUPPRESS)
    add_get_arguments(actions.add_parser("get", help="Show a gateway"), "gateway", has_id=False)
    update = actions.add_parser("update", help="Change a gateway")
    update.add_argument("--set-default", action="store_true", help="Services that name no gateway use this one")
    update.add_argument("--domain", metavar="DOMAIN", help="Its domain; better set in the configuration")
    delete = actions.add_parser("delete", help="Delete a gateway")
    delete.add_argument("-y", "--yes", action="store_true", help="Do not ask")
    for action in (update, delete):
        completes(action.add_argument("name", metavar="NAME", help="The gateway"), "gateways")


def _add_list_arguments(parser: argparse.ArgumentParser, *, default: bool | str, format_default: str) -> None:
    add_list_arguments(parser, default=default)
    parser.add_argument(
        "--format", choices=("plain", "json"), default=format_default, help="The form of the output"
    )
    parser.add_argument(
        "--json",
        action="store_const",
        const="json",
        dest="format",
        default=format_default,
        help="Same as --format json",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    actions = {"get": _get, "update": _update, "delete": _delete}
    actions.get(args.action, _list)(connect(args), args)
    return 0


def _list(context: Context, args: argparse.Namespace) -> None:
    if args.format == "json":
        gateways = context.rest.gateways.list(context.project)
        print(json.dumps({"project": context.project, "gateways": gateways}, indent=2))
        return
    show(lambda: _print_gateways(context, verbose=args.verbose), watch=args.watch)


def _print_gateways(context: Context, *, verbose: bool) -> None:
    headers, now = gateway_headers(verbose=verbose), now_utc()
    gateways = context.rest.gateways.list(context.project)
    rows = [row for one in gateways for row in gateway_rows(one, context.project, headers, now)]
    print_table(headers, rows)


def _get(context: Context, args: argparse.Namespace) -> None:
    print(json.dumps(context.rest.gateways.get(context.project, args.name), indent=2))


def _update(context: Context, args: argparse.Namespace) -> None:
    if not args.set_default and args.domain is None:
        raise CliError("Nothing to change: give --set-default or --domain DOMAIN")
    if args.set_default:
        project, _, name = args.name.rpartition("/")
        context.rest.gateways.set_default(context.project, name, gateway_project=project or None)
    if args.domain is not None:
        context.rest.gateways.set_wildcard_domain(context.project, args.name, args.domain)
    print(f"Updated the gateway {args.name}.")


def _delete(context: Context, args: argparse.Namespace) -> None:
    from dstack.cli.waiting import delete_gateway

    context.rest.gateways.get(context.project, args.name)
    if args.yes or confirm(f"Delete the gateway {args.name}?"):
        delete_gateway(context, args.name)
        print(f"Deleted the gateway {args.name}.")

"""`dstack secret`: texts that runs may use and nobody else sees."""

from __future__ import annotations

import argparse

from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_table

MASK = "*" * 6


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="Show the names of the secrets")
    for action, text in (
        ("get", "Show a secret"),
        ("set", "Create or change a secret"),
        ("delete", "Remove a secret"),
    ):
        name = actions.add_parser(action, help=text).add_argument("name", metavar="NAME", help="The secret")
        completes(name, "secrets")
    actions.choices["set"].add_argument("value", metavar="VALUE", help="Its text")
    actions.choices["delete"].add_argument("-y", "--yes", action="store_true", help="Do not ask")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    actions = {"get": _get, "set": _set, "delete": _delete}
    actions.get(args.action, _list)(connect(args), args)
    return 0


def _list(context: Context, args: argparse.Namespace) -> None:
    secrets = context.rest.secrets.list(context.project)
    print_table(["NAME", "VALUE"], [[secret["name"], MASK] for secret in secrets])


def _get(context: Context, args: argparse.Namespace) -> None:
    secret = context.rest.secrets.get(context.project, args.name)
    print_table(["NAME", "VALUE"], [[secret["name"], secret["value"]]], keep=("VALUE",))


def _set(context: Context, args: argparse.Namespace) -> None:
    context.rest.secrets.set(context.project, args.name, args.value)
    print(f"Secret {args.name} is set.")


def _delete(context: Context, args: argparse.Namespace) -> None:
    context.rest.secrets.get(context.project, args.name)
    if args.yes or confirm(f"Delete the secret {args.name}?"):
        context.rest.secrets.delete(context.project, [args.name])
        print(f"Secret {args.name} is deleted.")

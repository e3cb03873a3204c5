"""`dstack token`: further tokens of yours, which may expire and be limited to projects or to services."""

from __future__ import annotations

import argparse
from typing import Any

from dstack.cli.arguments import parse_until
from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_table
from dstack.cli.output.values import format_age, now_utc, parse_time


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="Show your tokens, without their texts")
    create = actions.add_parser("create", help="Make a token and show it, this once")
    create.add_argument("name", metavar="NAME", help="What to call it")
    create.add_argument(
        "--expires", type=parse_until, metavar="T", help="When it ends: a duration such as 30d, or a time"
    )
    create.add_argument(
        "--only-project", action="append", metavar="NAME", help="Only for this project (repeatable)"
    )
    create.add_argument(
        "--services-only", action="store_true", help="Only for services and models, not for the REST API"
    )
    delete = actions.add_parser("delete", help="End a token at once")
    completes(delete.add_argument("name", metavar="NAME", help="The token"), "tokens")
    delete.add_argument("-y", "--yes", action="store_true", help="Do not ask")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    actions = {"create": _create, "delete": _delete}
    actions.get(args.action, _list)(connect(args), args)
    return 0


def _list(context: Context, args: argparse.Namespace) -> None:
    headers = ["NAME", "OPENS", "EXPIRES", "LAST USED", "CREATED"]
    print_table(headers, [_row(token) for token in context.rest.tokens.list()], keep=("NAME",))


def _row(token: dict[str, Any]) -> list[str]:
    now = now_utc()
    return [
        token["name"],
        _format_scope(token),
        _format_expiry(token["expires_at"]),
        format_age(token["last_used_at"], now) or "never",
        format_age(token["created_at"], now),
    ]


def _format_scope(token: dict[str, Any]) -> str:
    what = "services" if token["services_only"] else "everything"
    projects = token["projects"]
    return what if projects is None else f"{what} of {', '.join(projects) or 'deleted projects'}"


def _format_expiry(text: str | None) -> str:
    if text is None:
        return "never"
    moment = parse_time(text)
    return "expired" if moment <= now_utc() else moment.astimezone().strftime("%Y-%m-%d %H:%M")


def _create(context: Context, args: argparse.Namespace) -> None:
    made = context.rest.tokens.create(
        args.name, expires_at=args.expires, projects=args.only_project, services_only=args.services_only
    )
    print(made["token"])


def _delete(context: Context, args: argparse.Namespace) -> None:
    if args.yes or confirm(f"Delete the token {args.name}?"):
        context.rest.tokens.delete([args.name])
        print(f"Token {args.name} is deleted.")

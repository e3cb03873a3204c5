"""`dstack export`: fleets and gateways that a project shares with others."""

from __future__ import annotations

import argparse
from typing import Any

from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.errors import CliError
from dstack.cli.output.prompts import confirm
from dstack.cli.output.tables import print_table

HEADERS = ("NAME", "FLEETS", "GATEWAYS", "IMPORTERS")
ALL = "*"


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="Show what the project shares")
    create = actions.add_parser("create", help="Share fleets and gateways")
    create.add_argument("name", metavar="NAME", help="What to call it")
    _add_names(create, "importer", "importers", "This project may use them")
    _add_names(create, "fleet", "fleets", "Share this fleet", "fleets")
    _add_names(create, "gateway", "gateways", "Share this gateway", "gateways")
    create.add_argument("--global", action="store_true", dest="is_global", help="All projects may use them")
    _register_update(actions.add_parser("update", help="Change what is shared, or with whom"))
    delete = actions.add_parser("delete", help="Share no more")
    completes(delete.add_argument("name", metavar="NAME", help="The export"), "exports")
    delete.add_argument("-y", "--yes", action="store_true", help="Do not ask")


def _register_update(parser: argparse.ArgumentParser) -> None:
    completes(parser.add_argument("name", metavar="NAME", help="The export"), "exports")
    _add_names(parser, "add-importer", "add_importers", "This project may use it too")
    _add_names(parser, "remove-importer", "remove_importers", "This project may no longer use it")
    for kind in ("fleet", "gateway"):
        _add_names(parser, f"add-{kind}", f"add_{kind}s", f"Share this {kind} too", f"{kind}s")
        _add_names(parser, f"remove-{kind}", f"remove_{kind}s", f"No longer share this {kind}", f"{kind}s")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--set-global", action="store_true", help="All projects may use it")
    group.add_argument("--unset-global", action="store_true", help="Only the projects named may use it")


def _add_names(
    parser: argparse.ArgumentParser, flag: str, dest: str, text: str, completed: str | None = None
) -> None:
    action = parser.add_argument(
        f"--{flag}", action="append", dest=dest, default=[], metavar="NAME", help=f"{text} (repeatable)"
    )
    if completed is not None:
        completes(action, completed)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    actions = {"create": _create, "update": _update, "delete": _delete}
    actions.get(args.action, _list)(connect(args), args)
    return 0


def _list(context: Context, args: argparse.Namespace) -> None:
    print_table(HEADERS, [_row(export) for export in context.rest.exports.list(context.project)])


def _row(export: dict[str, Any]) -> list[str]:
    importers = [one["project_name"] for one in export["imports"]]
    return [
        export["name"],
        ", ".join(fleet["name"] for fleet in export["exported_fleets"]),
        ", ".join(gateway["name"] for gateway in export.get("exported_gateways") or []),
        ALL if export.get("is_global") else ", ".join(importers),
    ]


def _create(context: Context, args: argparse.Namespace) -> None:
    export = context.rest.exports.create(
        context.project,
        args.name,
        is_global=args.is_global,
        importer_projects=args.importers,
        exported_fleets=args.fleets,
        exported_gateways=args.gateways,
    )
    print_table(HEADERS, [_row(export)])


def _update(context: Context, args: argparse.Namespace) -> None:
    changes = {
        "set_global": args.set_global,
        "unset_global": args.unset_global,
        "add_importer_projects": args.add_importers,
        "remove_importer_projects": args.remove_importers,
        "add_exported_fleets": args.add_fleets,
        "remove_exported_fleets": args.remove_fleets,
        "add_exported_gateways": args.add_gateways,
        "remove_exported_gateways": args.remove_gateways,
    }
    if not any(changes.values()):
        raise CliError("Nothing to change: give --add-fleet, --remove-importer or another flag")
    print_table(HEADERS, [_row(context.rest.exports.update(context.project, args.name, **changes))])


def _delete(context: Context, args: argparse.Namespace) -> None:
    if args.yes or confirm(f"Delete the export {args.name}? Other projects can no longer use what it shares."):
        context.rest.exports.delete(context.project, args.name)
        print(f"Deleted the export {args.name}.")

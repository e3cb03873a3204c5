"""`dstack delete`: removes what a configuration made."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from dstack.cli.context import Context, connect
from dstack.cli.errors import CliError
from dstack.cli.output.prompts import confirm
from dstack.cli.waiting import delete_fleet, delete_gateway, delete_volume


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
    if kind == "preset":
        raise CliError("Presets are kept on this machine: `dstack preset delete NAME` deletes one")
    if name is None:
        raise CliError("The configuration has no 'name', so nothing can be told to be its own")
    context = connect(args)
    _find(context, kind, name)
    what = f"the {kind if kind in DELETE else 'run'} {name}"
    if args.yes or confirm(f"Delete {what}?"):
        DELETE.get(kind, _delete_run)(context, name)
        print(f"Deleted {what}.")
    return 0


def _find(context: Context, kind: str, name: str) -> dict[str, Any]:
    """Raises ResourceNotExists."""
    if kind == "volume":
        return context.rest.volumes.get(context.project, name)
    if kind == "gateway":
        return context.rest.gateways.get(context.project, name)
    find = context.rest.fleets.get if kind == "fleet" else context.rest.runs.get
    return find(context.project, name=name)


def _delete_run(context: Context, name: str) -> None:
    context.rest.runs.delete(context.project, [name])


DELETE: dict[str, Callable[[Context, str], None]] = {
    "fleet": delete_fleet,
    "gateway": delete_gateway,
    "volume": delete_volume,
}
"""By type of configuration; all others are of runs."""

"""`dstack ps`: the runs of a project."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from dstack.api.errors import NotSupported
from dstack.cli.context import Context, connect
from dstack.cli.output.live import LiveText, wait_a_while
from dstack.cli.output.runs import list_headers, list_rows
from dstack.cli.output.tables import print_table
from dstack.cli.output.values import now_utc

MAX_RUNS = 100


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("-a", "--all", action="store_true", help="Show finished runs too")
    parser.add_argument("-v", "--verbose", action="store_true", help="Show more columns")
    parser.add_argument("-w", "--watch", action="store_true", help="Go on showing, as it changes")
    parser.add_argument("-n", "--last", type=int, metavar="N", help="Show the last N runs, finished ones too")
    parser.add_argument("--format", choices=("plain", "json"), default="plain", help="The form of the output")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="Same as --format json")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    context = connect(args)
    if args.watch and args.format == "plain":
        _watch(context, args)
        return 0
    runs = list_runs(context, args)
    if args.format == "json":
        print(json.dumps({"project": context.project, "runs": runs}, indent=2))
    else:
        _print_runs(runs, verbose=args.verbose)
    return 0


def list_runs(context: Context, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The active runs, or the last one when none is active; all where asked for."""
    if args.last is not None:
        return context.rest.runs.list(context.project, limit=min(max(args.last, 1), MAX_RUNS))
    if args.all:
        return context.rest.runs.list(context.project)
    return context.rest.runs.list(context.project, only_active=True) or context.rest.runs.list(
        context.project, limit=1
    )


def _print_runs(runs: list[dict[str, Any]], *, verbose: bool) -> None:
    headers = list_headers(runs, verbose=verbose)
    print_table(headers, list_rows(runs, headers, now_utc()))


def _watch(context: Context, args: argparse.Namespace) -> None:
    live = LiveText(sys.stdout)
    while True:
        with live.redrawn():
            _print_runs(list_runs(context, args), verbose=args.verbose)
        _wait_for_change(context)


def _wait_for_change(context: Context) -> None:
    """Returns when a run has changed; from servers that cannot tell, after a while."""
    try:
        with context.rest.runs.watch(context.project, None) as lines:
            for line in lines:
                if line["type"] in ("run", "ping"):
                    return
    except NotSupported:
        wait_a_while()

"""`dstack stop`: ends a run."""

from __future__ import annotations

import argparse

from dstack.cli.completers import completes
from dstack.cli.context import connect
from dstack.cli.output.prompts import confirm

FINISHED = ("terminated", "failed", "done")


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    completes(parser.add_argument("run_name", metavar="RUN", help="The run"), "runs")
    parser.add_argument("-x", "--abort", action="store_true", help="Do not let its jobs end by themselves")
    parser.add_argument("-y", "--yes", action="store_true", help="Do not ask")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    context = connect(args)
    run = context.rest.runs.get(context.project, name=args.run_name)
    if run["status"] in FINISHED:
        print(f"Run {args.run_name} is already over ({run['status']}).")
        return 0
    verb = "Abort" if args.abort else "Stop"
    if args.yes or confirm(f"{verb} the run {args.run_name}?"):
        context.rest.runs.stop(context.project, [args.run_name], abort=args.abort)
        print(f"{'Aborting' if args.abort else 'Stopping'} {args.run_name}.")
    return 0

"""`dstack metrics`: what the jobs of a run use."""

from __future__ import annotations

import argparse
from typing import Any

from dstack.cli.completers import completes
from dstack.cli.context import Context, connect
from dstack.cli.errors import CliError
from dstack.cli.output.live import show
from dstack.cli.output.metrics import HEADERS, job_rows
from dstack.cli.output.tables import print_table


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    completes(parser.add_argument("run_name", metavar="RUN", help="The run"), "runs")
    parser.add_argument("-w", "--watch", action="store_true", help="Go on showing, as it changes")
    parser.add_argument("--replica", type=int, metavar="N", help="Only this replica (default: all)")
    parser.add_argument("--job", type=int, metavar="N", help="Only this job of each replica (default: all)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    context = connect(args)
    show(lambda: print_table(HEADERS, _rows(context, args), keep=HEADERS), watch=args.watch)
    return 0


def _rows(context: Context, args: argparse.Namespace) -> list[list[str]]:
    rows: list[list[str]] = []
    for spec in _jobs(context.rest.runs.get(context.project, name=args.run_name), args.replica, args.job):
        series = context.rest.metrics.get_job(
            context.project, args.run_name, replica_num=spec["replica_num"], job_num=spec["job_num"]
        )
        rows += job_rows(spec["job_name"], series)
    return rows


def _jobs(run: dict[str, Any], replica: int | None, number: int | None) -> list[dict[str, Any]]:
    """The specifications of the jobs that were asked for."""
    specs = [job["job_spec"] for job in run["jobs"]]
    found = [
        spec for spec in specs if replica in (None, spec["replica_num"]) and number in (None, spec["job_num"])
    ]
    if not found and specs:
        wanted = [
            f"{word} {value}" for word, value in (("replica", replica), ("job", number)) if value is not None
        ]
        raise CliError(f"The run {run['run_spec']['run_name']} has no {' with a '.join(wanted)}")
    return found

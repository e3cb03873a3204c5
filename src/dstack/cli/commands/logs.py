"""`dstack logs`: what the jobs of a run have written."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dstack.cli.arguments import parse_since
from dstack.cli.completers import completes
from dstack.cli.context import connect
from dstack.cli.errors import CliError
from dstack.cli.following import copy_log, print_stored_log

Document = dict[str, Any]


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    completes(parser.add_argument("run_name", metavar="RUN", help="The run"), "runs")
    parser.add_argument("-d", "--diagnose", action="store_true", help="Show the agent's own log of the job")
    parser.add_argument("-f", "--follow", action="store_true", help="Go on until the job is over")
    parser.add_argument("--replica", type=int, default=0, metavar="N", help="The replica (default: 0)")
    parser.add_argument("--job", type=int, default=0, metavar="N", help="The job of the replica (default: 0)")
    parser.add_argument("--since", type=parse_since, metavar="T", help="A duration such as 10m, or a time")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.follow and args.diagnose:
        raise CliError("-f and -d exclude each other")
    context = connect(args)
    found = context.rest.runs.get(context.project, name=args.run_name)
    submission = _find_submission(found, args.replica, args.job)
    out = sys.stdout.buffer
    if args.follow:
        copy_log(context, args.run_name, submission["id"], out, start_time=args.since)
    else:
        print_stored_log(
            context, args.run_name, submission["id"], out, start_time=args.since, diagnose=args.diagnose
        )
    return 0


def _find_submission(run: Document, replica: int, number: int) -> Document:
    for job in run["jobs"]:
        spec = job["job_spec"]
        if (spec["replica_num"], spec["job_num"]) == (replica, number) and job["job_submissions"]:
            submission: Document = job["job_submissions"][-1]
            return submission
    raise CliError(f"The run {run['run_spec']['run_name']} has no replica {replica} with a job {number}")

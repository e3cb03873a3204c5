"""`dstack attach`: a running job's shell, ports and log on this machine."""

from __future__ import annotations

import argparse

from dstack.api.attach import find_job
from dstack.api.ssh.ports import ReservedPorts, find_ports_here, override, wishes_of
from dstack.cli.applying.attached import Follower
from dstack.cli.arguments import parse_since
from dstack.cli.completers import completes
from dstack.cli.context import connect
from dstack.cli.errors import CliError


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    completes(parser.add_argument("run_name", metavar="RUN", help="The run"), "runs")
    parser.add_argument("--ssh-identity", metavar="PATH", help="Your private SSH key")
    parser.add_argument("--logs", action="store_true", help="Show the log; ends with the run")
    parser.add_argument("--host", default="localhost", help="Where ports are forwarded to (default: localhost)")
    parser.add_argument(
        "-p",
        "--port",
        dest="ports",
        action="append",
        metavar="[LOCAL:]REMOTE",
        help="The local port of one of the job's (repeatable)",
    )
    parser.add_argument("--replica", type=int, metavar="N", help="The replica (default: any that runs)")
    parser.add_argument("--job", type=int, default=0, metavar="N", help="The job of the replica (default: 0)")
    parser.add_argument(
        "--since", type=parse_since, metavar="T", help="With --logs: a duration such as 10m, or a time"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.since is not None and not args.logs:
        raise CliError("--since says from when on the log is shown: give --logs too")
    context = connect(args)
    run = context.rest.runs.get(context.project, name=args.run_name)
    job = find_job(run, replica=args.replica, number=args.job)
    ports = ReservedPorts(args.host)
    ports.reserve(override(wishes_of(job["job_spec"]), args.ports or ()), find_ports_here(job))
    follower = Follower(
        context,
        args.run_name,
        ports,
        replica=job["job_spec"]["replica_num"],
        job_number=args.job,
        ssh_identity=args.ssh_identity,
        shows_log=args.logs,
        since=args.since,
    )
    return follower.follow(ask_on_interrupt=True)

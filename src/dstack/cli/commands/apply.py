"""`dstack apply`: makes the world as a configuration says."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dstack.cli.commands.preset import add_making_arguments
from dstack.cli.errors import CliError
from dstack.cli.overrides import add_offer_arguments, add_profile_arguments, add_resource_arguments

if TYPE_CHECKING:
    from dstack.cli.context import Context
    from dstack.cli.files import ConfigurationFile

RUN_TYPES = ("task", "dev-environment", "service")
TYPES = (*RUN_TYPES, "fleet", "gateway", "volume", "preset")
MAX_OFFERS = 3
STDIN = "-"


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "-h",
        "--help",
        nargs="?",
        const="",
        choices=("", *TYPES),
        metavar="TYPE",
        help="Show this help, or a type's",
    )
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="The configuration, - for stdin (default: .dstack.yml, .dstack.yaml)"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="Do not ask")
    parser.add_argument("--force", action="store_true", help="Apply although nothing changed")
    parser.add_argument("-d", "--detach", action="store_true", help="Return right after submission")
    parser.add_argument("-v", "--verbose", action="store_true", help="Show default properties too")
    parser.usage = "dstack apply [-f FILE] [options] [-- RUN_ARGS]"
    add_type_arguments(parser, None)


def add_type_arguments(parser: argparse.ArgumentParser, kind: str | None) -> None:
    """Adds the flags that fit a type of configuration; all of them for None."""
    parser.add_argument("-n", "--name", help="The resource's name")
    if kind in (None, "preset"):
        add_making_arguments(parser)
    if kind == "gateway":
        _add_ssh_identity(parser)
    if kind in ("gateway", "volume"):
        return
    if kind == "preset":
        add_profile_arguments(parser)
        return
    parser.add_argument(
        "-e", "--env", action="append", metavar="KEY[=VALUE]", help="A variable; KEY copies yours (repeatable)"
    )
    _add_ssh_identity(parser)
    if kind in (None, "task", "dev-environment"):
        parser.add_argument(
            "-p", "--port", dest="ports", action="append", metavar="[LOCAL:]REMOTE", help="A port (repeatable)"
        )
        parser.add_argument("--host", help="Where ports are forwarded to (default: localhost)")
    if kind != "fleet":
        from dstack.cli.applying.repos import add_repo_arguments

        add_offer_arguments(parser, max_offers=MAX_OFFERS)
        add_resource_arguments(parser)
        add_profile_arguments(parser)
        add_repo_arguments(parser)


def _add_ssh_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssh-identity", metavar="PATH", help="Your private SSH key")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.help is not None:
        _print_help(args.help)
        return 0
    if args.file == STDIN and not args.yes:
        raise CliError("A configuration from stdin leaves nobody to answer: pass -y to agree beforehand")
    from dstack.cli.context import connect
    from dstack.cli.files import load_configuration

    file = load_configuration(args.file)
    kind = str(getattr(file.configuration, "type", ""))
    _check_flags(args, kind)
    return _apply(connect(args), file, kind, args)


def _apply(context: Context, file: ConfigurationFile, kind: str, args: argparse.Namespace) -> int:
    if kind == "fleet":
        from dstack.cli.applying.fleets import apply_fleet

        return apply_fleet(context, file, args)
    if kind == "gateway":
        from dstack.cli.applying.gateways import apply_gateway

        return apply_gateway(context, file, args)
    if kind == "preset":
        from dstack.cli.applying.presets import apply_preset

        return apply_preset(context, file, args)
    if kind == "volume":
        from dstack.cli.applying.volumes import apply_volume

        return apply_volume(context, file, args)
    from dstack.cli.applying.attached import Follower
    from dstack.cli.applying.runs import submit_run

    submitted = submit_run(context, file, args)
    if submitted is None:
        return 0
    name = submitted.run["run_spec"]["run_name"]
    if submitted.ports is None:
        print(f"The run {name} is submitted; see it with `dstack ps` and `dstack logs -f {name}`.")
        return 0
    follower = Follower(context, name, submitted.ports, ssh_identity=args.ssh_identity)
    return follower.follow(ask_on_interrupt=not args.yes)


def _check_flags(args: argparse.Namespace, kind: str) -> None:
    """Raises CliError for a flag that means nothing for this type."""
    fitting = {action.dest for action in _type_actions(kind)}
    for action in _type_actions(None):
        if action.dest not in fitting and getattr(args, action.dest) != action.default:
            raise CliError(f"{action.option_strings[-1]} means nothing for a {kind}: see `dstack apply -h {kind}`")
    if args.run_args and kind != "task":
        raise CliError(f"Arguments after -- mean nothing for a {kind}")


def _type_actions(kind: str | None) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    add_type_arguments(parser, kind)
    return parser._actions


def _print_help(kind: str) -> None:
    from dstack.cli.main import HelpFormatter

    parser = argparse.ArgumentParser(
        prog="dstack apply",
        add_help=False,
        description=f"Apply a {kind}." if kind else "Apply a configuration.",
        formatter_class=HelpFormatter,
    )
    if kind:
        add_type_arguments(parser, kind)
    else:
        register(parser)
    parser.print_help()

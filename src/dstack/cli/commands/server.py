"""`dstack server`: starts a server. The only part of the CLI that knows `dstack.server`."""

from __future__ import annotations

import argparse
import gc
import importlib

from dstack.cli.errors import CliError


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--host", help="Where to listen (default: $DSTACK_SERVER_HOST, 127.0.0.1)")
    parser.add_argument("-p", "--port", type=int, help="Where to listen (default: $DSTACK_SERVER_PORT, 3000)")
    parser.add_argument("-d", "--debug", action="store_true", help="Same as --log-level DEBUG")
    parser.add_argument("-l", "--log-level", help="How much to log (default: $DSTACK_SERVER_LOG_LEVEL, INFO)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-y", "--yes", action="store_true", help="Make its project main the client's default project"
    )
    group.add_argument("-n", "--no", action="store_true", help="Leave the client's default project as it is")
    parser.add_argument("--token", help="The admin's token, at the first start (default: a random one)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns when the server has stopped."""
    gc.disable()  # hardly anything made during start-up is garbage; the server enables it once it listens
    try:
        server = importlib.import_module("dstack.server.main")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("dstack"):
            raise
        raise CliError(
            f"The server needs packages that are not installed ({error.name}): pip install 'dstack[server]'"
        ) from error
    return int(
        server.run(
            host=args.host,
            port=args.port,
            log_level="DEBUG" if args.debug else args.log_level,
            token=args.token,
            update_default_project=True if args.yes else False if args.no else None,
        )
    )

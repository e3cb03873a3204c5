"""`dstack completion`: the script that teaches a shell the words of `dstack`."""

from __future__ import annotations

import argparse


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="The shell")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["dstack"], shell=args.shell))
    return 0

"""The project and server that a command works with."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from dstack.api.config import resolve_project
from dstack.api.rest.client import RestClient
from dstack.cli.log_file import write_line


@dataclass(frozen=True)
class Context:
    """Where a command works."""

    project: str
    rest: RestClient


def connect(args: argparse.Namespace) -> Context:
    """The project that the arguments, the environment or the file name, and its server, until the command ends."""
    project = resolve_project(getattr(args, "project", None))
    rest = args.open_connections.enter_context(RestClient(project.url, project.token, trace=write_line))
    return Context(project.name, rest)

"""The project and server that a command works with."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from logging.handlers import WatchedFileHandler
from pathlib import Path

from dstack.api.config import resolve_project
from dstack.api.rest.client import RestClient

FILE_LEVEL_VARIABLE = "DSTACK_CLI_FILE_LOG_LEVEL"


@dataclass(frozen=True)
class Context:
    """Where a command works."""

    project: str
    rest: RestClient


def connect(args: argparse.Namespace) -> Context:
    """The project that the arguments, the environment or the file name, and its server, until the command ends."""
    project = resolve_project(getattr(args, "project", None))
    rest = args.open_connections.enter_context(RestClient(project.url, project.token))
    return Context(project.name, rest)


def start_log_file() -> None:
    """Lets the log of commands that change something go to `~/.dstack/logs/cli/latest.log`, a file a day."""
    path = Path.home() / ".dstack" / "logs" / "cli" / "latest.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        written_on = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).date()
        if written_on != datetime.now(timezone.utc).date():
            path.replace(path.with_name(f"{written_on.isoformat()}.log"))
    handler = WatchedFileHandler(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("dstack")
    logger.addHandler(handler)
    logger.setLevel(os.environ.get(FILE_LEVEL_VARIABLE, "DEBUG").upper())

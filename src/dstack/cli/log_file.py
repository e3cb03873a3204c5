"""`~/.dstack/logs/cli/latest.log`: the calls that commands made, for when something went wrong. A file a day."""

from __future__ import annotations

import contextlib
import os
from datetime import datetime, timezone
from pathlib import Path

LEVEL_VARIABLE = "DSTACK_CLI_FILE_LOG_LEVEL"


def write_line(text: str) -> None:
    """Adds the text, unless the level asked for is above DEBUG."""
    if os.environ.get(LEVEL_VARIABLE, "DEBUG").upper() != "DEBUG":
        return
    path = Path.home() / ".dstack" / "logs" / "cli" / "latest.log"
    with contextlib.suppress(OSError):  # a command does not fail because its log cannot be written
        path.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now(timezone.utc)
        _rename_of_other_day(path, now)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{now.isoformat(timespec='milliseconds')} DEBUG {text}\n")


def _rename_of_other_day(path: Path, now: datetime) -> None:
    if path.exists():
        written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).date()
        if written != now.date():
            path.replace(path.with_name(f"{written.isoformat()}.log"))

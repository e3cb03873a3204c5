"""The gateway's memory, mirrored to `state-v2.json` at each write and read back at start."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from pydantic import ValidationError

from dstack.proxy.gateway.models import GatewayState

log = logging.getLogger(__name__)


def load(path: Path) -> GatewayState:
    """What was saved; empty where nothing was. A file that cannot be read is kept beside, and said."""
    for candidate in (path, path.with_name("state.json")):
        try:
            text = candidate.read_text()
        except FileNotFoundError:
            continue
        try:
            return _read(text)
        except (ValueError, ValidationError) as error:
            aside = candidate.with_name(f"{candidate.name}.unreadable-{int(time.time())}")
            candidate.replace(aside)
            log.error(
                "%s cannot be read and is now %s; the server registers everything anew: %s",
                candidate,
                aside,
                error,
            )
            break
    return GatewayState()


def _read(text: str) -> GatewayState:
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("it holds no object")
    version = data.get("version", 2)
    if version != 2:
        log.warning("The state was written by another version (%s); what this one knows of it is used", version)
    return GatewayState.model_validate({**data, "version": 2})


def save(path: Path, state: GatewayState) -> None:
    """Atomically: a reader finds the whole of it, or the whole of what was there before."""
    new = path.with_name(f".{path.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(state.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)

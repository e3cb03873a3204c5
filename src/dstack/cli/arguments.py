"""Arguments that several commands share, and the values they stand for."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta, timezone


def parse_since(text: str) -> str:
    """The moment (ISO 8601) that a duration such as `10m` ago or an RFC 3339 time means."""
    from dstack.core.durations import parse_duration  # imports pydantic, which few calls need

    try:
        moment = datetime.now(timezone.utc) - timedelta(seconds=parse_duration(text))
    except ValueError:
        moment = _parse_moment(text)
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def parse_until(text: str) -> str:
    """The moment (ISO 8601) that a duration such as `30d` from now or an RFC 3339 time means."""
    from dstack.core.durations import parse_duration  # imports pydantic, which few calls need

    try:
        moment = datetime.now(timezone.utc) + timedelta(seconds=parse_duration(text))
    except ValueError:
        moment = _parse_moment(text)
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _parse_moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a duration such as 10m nor a time such as 2030-01-31T12:00:00Z"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)

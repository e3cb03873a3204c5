"""Lengths of time in configurations: whole seconds, or text such as `90s`, `2h` and `1h30m`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
OFF = "off"
NEVER = -1
"""How `off` is written in an idle duration."""

_PART = re.compile(r"(\d+)\s*([smhdw])\s*")


def parse_duration(value: Any) -> int:
    """The duration in seconds of a number (fractions are cut off) or a text."""
    if isinstance(value, (int, float)):
        return int(value)
    if not isinstance(value, str):
        raise ValueError(f"a duration such as 300, '90s', '2h' or '1h30m' is expected, not {value!r}")
    text = value.strip()
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text):
        raise ValueError(
            f"{value!r} is not a duration: write seconds or whole numbers with a unit of s, m, h, d or w,"
            " such as '90s', '2h' or '1h30m'"
        )
    return sum(int(number) * SECONDS_PER_UNIT[unit] for number, unit in parts)


def format_duration(seconds: int) -> str:
    """The shortest text that parses back to the same duration: `5400` is `1h30m`."""
    if seconds <= 0:
        return f"{seconds}s" if seconds == 0 else str(seconds)
    text = ""
    for unit in ("w", "d", "h", "m", "s"):
        count, seconds = divmod(seconds, SECONDS_PER_UNIT[unit])
        text += f"{count}{unit}" if count else ""
    return text


def _parse_limit(value: Any) -> int | str | None:
    if value is None or value is True:
        return None
    if value is False or value == OFF:
        return OFF
    seconds = parse_duration(value)
    if seconds < 0:
        raise ValueError("a duration cannot be negative; write 'off' for no limit")
    return seconds


def _parse_idle(value: Any) -> int | None:
    if value is None or value is True:
        return None
    if value is False or value == OFF:
        return NEVER
    return parse_duration(value)


def _parse_inactivity(value: Any) -> int | None:
    limit = _parse_limit(value)
    return limit if isinstance(limit, int) else None


Duration = Annotated[int, BeforeValidator(parse_duration)]
"""Seconds."""

DurationLimit = Annotated[int | Literal["off"] | None, BeforeValidator(_parse_limit)]
"""Seconds, `off` for no limit, null for the default."""

IdleDuration = Annotated[int | None, BeforeValidator(_parse_idle)]
"""Seconds, -1 for never (`off`), null for the default."""

InactivityDuration = Annotated[int | None, BeforeValidator(_parse_inactivity)]
"""Seconds; null (`off`) for no limit."""

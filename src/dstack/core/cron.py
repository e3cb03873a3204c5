"""Times of day and week in the five fields of a crontab line, in UTC.

Days of the week count from 0 = Monday; names (`mon`, `jan`) are the clearer choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

_MONTHS = tuple(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
_DAYS = tuple(["mon", "tue", "wed", "thu", "fri", "sat", "sun"])
_PART = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?", re.ASCII)
_HORIZON_YEARS = 8
"""The longest wait between two leap days (around a century's turn)."""


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 6, _DAYS),
)


@dataclass(frozen=True)
class CronExpression:
    """The minutes at which something is due. All fields must match."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> CronExpression:
        """Raises ValueError when the text is not five fields of a crontab line."""
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise ValueError(
                f"{text!r} is not a cron expression: five fields are expected, such as '0 8 * * mon-fri'"
            )
        return cls(*(_parse_field(part, field) for part, field in zip(parts, _FIELDS, strict=True)))

    def next_after(self, moment: datetime) -> datetime | None:
        """The first minute after the moment at which it is due; None if there is none (30 February)."""
        due = moment.astimezone(timezone.utc).replace(second=0, microsecond=0) + timedelta(minutes=1)
        for _ in range(_HORIZON_YEARS * 366):
            if self._matches_day(due):
                found = self._first_on_day(due)
                if found is not None:
                    return found
            due = due.replace(hour=0, minute=0) + timedelta(days=1)
        return None

    def _matches_day(self, day: datetime) -> bool:
        return day.month in self.months and day.day in self.days and day.weekday() in self.weekdays

    def _first_on_day(self, earliest: datetime) -> datetime | None:
        for hour in sorted(self.hours):
            for minute in sorted(self.minutes):
                if (hour, minute) >= (earliest.hour, earliest.minute):
                    return earliest.replace(hour=hour, minute=minute)
        return None


def next_trigger(expressions: list[str], after: datetime) -> datetime | None:
    """The earliest time at which any of the expressions is due."""
    times = [CronExpression.parse(expression).next_after(after) for expression in expressions]
    return min((time for time in times if time is not None), default=None)


def _parse_field(text: str, field: _Field) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        values.update(_parse_part(part, field))
    return frozenset(values)


def _parse_part(part: str, field: _Field) -> range:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is not a valid {field.name} of a cron expression")
    step = int(match["step"] or 1)
    first = field.low if match["first"] is None else _value(match["first"], field)
    if match["last"] is not None:
        last = _value(match["last"], field)
    else:
        last = first if match["first"] is not None and match["step"] is None else field.high
    if first > last or step < 1:
        raise ValueError(f"{part!r} is not a valid {field.name} of a cron expression: the range is empty")
    return range(first, last + 1, step)


def _value(text: str, field: _Field) -> int:
    if text.lower() in field.words:
        return field.words.index(text.lower()) + field.low
    if not text.isdecimal() or not field.low <= int(text) <= field.high:
        raise ValueError(f"{text!r} is not a valid {field.name} of a cron expression: {field.low} to {field.high}")
    return int(text)

"""One record of a log file: a JSON line `{timestamp, log_source, message, offset}`.

`offset` is ours: where the agent's log stood after the record, so that the position survives in the file.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import datetime, timezone

import orjson

from dstack.core.logs import LogEvent, LogEventSource

MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Record:
    """A parsed line."""

    timestamp_us: int
    log_source: str
    message: str
    """Base64."""
    offset: int

    def to_event(self) -> LogEvent:
        return LogEvent.model_construct(
            timestamp=from_microseconds(self.timestamp_us),
            log_source=LogEventSource(self.log_source),
            message=self.message,
        )


def encode_record(timestamp_us: int, payload: bytes, offset: int) -> bytes:
    """The line, newline included."""
    seconds, microseconds = divmod(timestamp_us, MICROSECONDS)
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return b'{"timestamp":"%s.%06dZ","log_source":"stdout","message":"%s","offset":%d}\n' % (
        moment.strftime("%Y-%m-%dT%H:%M:%S").encode(),
        microseconds,
        b64encode(payload),
        offset,
    )


def decode_record(line: bytes) -> Record:
    """Raises ValueError for anything but a whole record."""
    data = orjson.loads(line)
    try:
        moment = datetime.fromisoformat(data["timestamp"].replace("Z", "+00:00"))
        return Record(to_microseconds(moment), data["log_source"], data["message"], data.get("offset", 0))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a log record: {error!r}") from error


def to_microseconds(moment: datetime) -> int:
    """Microseconds since the epoch, exactly."""
    delta = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (delta.days * 86_400 + delta.seconds) * MICROSECONDS + delta.microseconds


def from_microseconds(timestamp_us: int) -> datetime:
    """The inverse of `to_microseconds`."""
    seconds, microseconds = divmod(timestamp_us, MICROSECONDS)
    return datetime.fromtimestamp(seconds, tz=timezone.utc).replace(microsecond=microseconds)

"""Server-sent events: reading and writing. Pure."""

from __future__ import annotations

from typing import Any

import orjson

MAX_EVENT_BYTES = 1024 * 1024
DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(data)


class EventTooLarge(ValueError):
    """An event of the stream is beyond `MAX_EVENT_BYTES`."""


class EventReader:
    """Fed with bytes as they arrive; gives the data of the events that are whole. Other fields are left out."""

    def __init__(self) -> None:
        self._partial = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises `EventTooLarge`."""
        *lines, self._partial = (self._partial + piece).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        if len(self._partial) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise EventTooLarge
        return events

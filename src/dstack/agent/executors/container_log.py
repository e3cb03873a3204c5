"""A container's output as log frames, each exactly once, however often the agent is killed.

Docker keeps the output with timestamps. One frame is made of each of its records, so the same output always
gives the same bytes: after a restart it is read again from a known record on, and what is on disk is skipped.
"""

from __future__ import annotations

import calendar
import os
import time
from typing import Any, Dict, Iterator, List, Tuple

from dstack.agent.files import read_json, write_json
from dstack.agent.logs import LogWriter
from dstack.agent.protocol import encode_frame

RECORD_BYTES = 16 * 1024
"""Docker ends a record after so many bytes when no line end comes before."""
SAVE_BYTES = 1024 * 1024
CURSOR = "container-log.json"
_SECOND = len("2026-01-02T03:04:05")


def note_before(folder: str, timestamp_us: int, text: str) -> None:
    """Puts a line of the agent's own before a container's output, of which nothing is read yet. Raises OSError."""
    writer, frame = LogWriter(os.path.join(folder, "logs")), encode_frame(timestamp_us, text.encode())
    try:
        if not writer.end:  # else an agent before this one did
            write_json(os.path.join(folder, CURSOR), {"timestamp": "", "offset": len(frame)})
            writer.append_frames(frame)
    finally:
        writer.close()


class TimestampedRecords:
    """Cuts Docker's stream with timestamps into (timestamp, output) records."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Tuple[bytes, bytes]]:
        """The records that are whole by now."""
        data = self._rest + data
        position = 0
        while True:
            start = data.find(b" ", position) + 1
            if not start:
                break
            end = data.find(b"\n", start, start + RECORD_BYTES) + 1
            if not end:
                if len(data) < start + RECORD_BYTES:
                    break
                end = start + RECORD_BYTES
            yield data[position : start - 1], data[start:end]
            position = end
        self._rest = data[position:]

    def flush(self) -> Iterator[Tuple[bytes, bytes]]:
        """The last record, when the output ended without a line end."""
        timestamp, space, output = self._rest.partition(b" ")
        self._rest = b""
        if space:
            yield timestamp, output


def microseconds(timestamp: bytes) -> int:
    """Of Docker's timestamps (UTC, nanoseconds) since the epoch."""
    text = timestamp.decode()
    seconds = calendar.timegm(time.strptime(text[:_SECOND], "%Y-%m-%dT%H:%M:%S"))
    fraction = text[_SECOND:].strip(".Z")
    return seconds * 1_000_000 + int((fraction + "000000")[:6])


def seconds_text(timestamp: str) -> str:
    """A timestamp as Docker's `since` wants it: seconds with nanoseconds."""
    seconds = calendar.timegm(time.strptime(timestamp[:_SECOND], "%Y-%m-%dT%H:%M:%S"))
    fraction = timestamp[_SECOND:].strip(".Z")
    return "{}.{}".format(seconds, (fraction + "000000000")[:9])


class ContainerLog:
    """Writes a container's records into the task's log. `since` is where Docker has to start."""

    def __init__(self, folder: str) -> None:
        self._cursor_path = os.path.join(folder, CURSOR)
        self._writer = LogWriter(os.path.join(folder, "logs"))
        cursor: Dict[str, Any] = read_json(self._cursor_path) or {}
        self._timestamp = str(cursor.get("timestamp", ""))
        self._offset = int(cursor.get("offset", 0))
        self._skip = self._writer.end - self._offset
        self._position = self._offset
        self._saved = self._offset
        self._records = TimestampedRecords()
        self._frames: List[bytes] = []
        self._held = b""

    @property
    def since(self) -> str:
        return seconds_text(self._timestamp) if self._timestamp else "0"

    def feed(self, data: bytes) -> None:
        """Takes a piece of Docker's stream; `write` has to follow."""
        for timestamp, output in self._records.feed(data):
            self._add(timestamp, output)

    def finish(self) -> None:
        """There is no more output, so what is left is a whole record; `write` has to follow."""
        for timestamp, output in self._records.flush():
            self._add(timestamp, output)

    def _add(self, timestamp: bytes, output: bytes) -> None:
        if timestamp.decode() != self._timestamp and not self._held:
            self._timestamp, self._offset = timestamp.decode(), self._position
        output, self._held = self._held + output, b""
        if output.endswith(b"\r\n"):
            output = output[:-2] + b"\n"
        elif output.endswith(b"\r"):  # the terminal's line end may be cut in two by the end of a record
            output, self._held = output[:-1], b"\r"
        frame = encode_frame(microseconds(timestamp), output)
        self._position += len(frame)
        if self._skip > 0:
            self._skip -= len(frame)
        else:
            self._frames.append(frame)

    def write(self) -> bool:
        """Writes what was taken; True when there was any. Raises OSError, after which it may be called again."""
        if not self._frames:
            return False
        self._writer.append_frames(b"".join(self._frames))
        self._frames.clear()
        if self._offset - self._saved >= SAVE_BYTES:
            write_json(self._cursor_path, {"timestamp": self._timestamp, "offset": self._offset})
            self._saved = self._offset
        return True

    def close(self) -> None:
        self._writer.close()

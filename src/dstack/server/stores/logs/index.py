"""Where in a log file a line or a moment is: one mark every `MARK_LINES` lines or `MARK_BYTES` bytes.

Kept in a file beside the log (24 bytes a mark), written after the log itself. Whatever it lacks or has too
much of after a crash is found again from the log, so it never has to be trusted.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

MARK_LINES = 128
MARK_BYTES = 64 * 1024
MARK = struct.Struct(">QQQ")


class Mark(NamedTuple):
    """A line starts at `offset`; the line before it is of `previous_us` (microseconds; 0 for the first)."""

    line: int
    offset: int
    previous_us: int


class SparseIndex:
    """The marks of one log file, in memory, and how many of them are in the index file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = array("Q", [0])
        self._offsets = array("Q", [0])
        self._previous = array("Q", [0])
        self._saved = 1  # the mark of the first line is never written

    def load(self, log_size: int) -> None:
        """Takes the marks that lie within the log. Raises OSError."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        whole = len(data) - len(data) % MARK.size
        for line, offset, previous_us in MARK.iter_unpack(data[:whole]):
            if offset >= log_size or line <= self._lines[-1] or offset <= self._offsets[-1]:
                break
            self._add(line, offset, previous_us)
        self._saved = len(self._lines)
        if len(data) != (self._saved - 1) * MARK.size:
            self._saved = 0  # the next save writes all

    @property
    def last(self) -> Mark:
        return self._mark(len(self._lines) - 1)

    def drop_last(self) -> None:
        """Forgets the newest mark; the next save writes the whole file."""
        for column in (self._lines, self._offsets, self._previous):
            column.pop()
        self._saved = 0

    def note_line(self, line: int, offset: int, previous_us: int) -> None:
        """Tells that `line` starts at `offset`; a mark is made when the last one is far enough away."""
        if line - self._lines[-1] >= MARK_LINES or offset - self._offsets[-1] >= MARK_BYTES:
            self._add(line, offset, previous_us)

    def save(self) -> None:
        """Writes the marks that the file lacks. Raises OSError."""
        count = len(self._lines)
        if self._saved == count:
            return
        start = max(self._saved, 1)
        data = b"".join(MARK.pack(*self._mark(number)) for number in range(start, count))
        mode = "wb" if self._saved == 0 else "ab"
        self._saved = 0  # should writing fail half-way, the next save writes all
        with self.path.open(mode) as file:
            file.write(data)
        self._saved = count

    def before_line(self, line: int) -> Mark:
        """The last mark at or before a line."""
        return self._mark(bisect_right(self._lines, line) - 1)

    def before_moment(self, timestamp_us: int) -> Mark:
        """The last mark before which every line is at or before the moment."""
        return self._mark(bisect_right(self._previous, timestamp_us) - 1)

    def before_offset(self, offset: int) -> Mark:
        """The last mark at or before a byte of the log."""
        return self._mark(bisect_right(self._offsets, offset) - 1)

    def _mark(self, number: int) -> Mark:
        return Mark(self._lines[number], self._offsets[number], self._previous[number])

    def _add(self, line: int, offset: int, previous_us: int) -> None:
        self._lines.append(line)
        self._offsets.append(offset)
        self._previous.append(previous_us)

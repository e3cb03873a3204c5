"""One log file on disk with its index. Blocking; safe to use from several threads.

The file alone is the truth: it is appended to in whole records under a lock of the file system, and a torn
record at its end (the writer was killed, the disk was full) is cut off by the next append and never read.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dstack.agent.protocol import FRAME_HEADER
from dstack.core.errors import InvalidRequest, StoreError
from dstack.server.stores.logs.base import MAX_PAGE_BYTES, Frame, LogPage, LogQuery
from dstack.server.stores.logs.index import SparseIndex
from dstack.server.stores.logs.records import Record, decode_record, encode_record, to_microseconds

CHUNK_BYTES = 64 * 1024


class LogFile:
    """`job.log` with `job.index` beside it. All methods raise StoreError when the disk fails."""

    _index: SparseIndex
    _size: int
    """Where the last whole record ends, as far as this process has seen."""
    _lines: int
    _position: int
    _last_us: int
    _inode: int
    """Of the file at the last look; 0 before the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._forget()

    def position(self) -> int:
        """Offset of the agent's log up to which everything is in the file."""
        with self._lock, _store_errors("read", self.path):
            self._refresh()
            return self._position

    def append(self, frames: Sequence[Frame], end_offset: int | None) -> bool:
        """Writes the frames that are not in the file yet; True when there were any.

        Without `end_offset` all frames are new (a log that no agent counts).
        """
        with self._lock, _store_errors("store", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._refresh()
                return self._append_locked(file.fileno(), frames, end_offset)

    def poll(self, query: LogQuery) -> LogPage:
        """One page of the file as it is now."""
        token = query.token_number
        with self._lock, _store_errors("read", self.path):
            self._refresh()
            if query.descending:
                return self._page_descending(query, token)
            return self._page_ascending(query, token)

    # writing

    def _append_locked(self, descriptor: int, frames: Sequence[Frame], end_offset: int | None) -> bool:
        if end_offset is None:
            end_offset = self._position + sum(FRAME_HEADER.size + len(payload) for _, payload in frames)
        if os.fstat(descriptor).st_size > self._size:
            os.ftruncate(descriptor, self._size)
        new = _frames_after(frames, end_offset, self._position)
        if not new:
            return False
        lines = self._encode(new)
        try:
            _write_all(descriptor, b"".join(line for line, _ in lines))
        except OSError:
            os.ftruncate(descriptor, self._size)
            raise
        for line, timestamp_us in lines:
            self._count_line(line, timestamp_us)
        self._position = end_offset
        self._index.save()
        return True

    def _encode(self, frames: list[tuple[int, bytes, int]]) -> list[tuple[bytes, int]]:
        """(line, timestamp); time never runs backwards within a log, whatever the host's clock does."""
        lines, last_us = [], self._last_us
        for timestamp_us, payload, offset in frames:
            last_us = max(last_us, timestamp_us)
            lines.append((encode_record(last_us, payload, offset), last_us))
        return lines

    def _count_line(self, line: bytes, timestamp_us: int) -> None:
        self._index.note_line(self._lines, self._size, self._last_us)
        self._lines += 1
        self._size += len(line)
        self._last_us = timestamp_us

    # knowing the file

    def _forget(self) -> None:
        self._index = SparseIndex(self.path.with_suffix(".index"))
        self._size = 0
        self._lines = 0
        self._position = 0
        self._last_us = 0
        self._inode = 0

    def _refresh(self) -> None:
        """Reads what has changed on disk since the last look: nothing, unless another process wrote."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._forget()
            return
        if stat.st_ino != self._inode or stat.st_size < self._size:
            self._forget()
            self._inode = stat.st_ino
            self._index.load(stat.st_size)
        if stat.st_size > self._size:
            self._scan_tail(stat.st_size)

    def _scan_tail(self, size: int) -> None:
        """From the last mark (or the known end) to the last whole record."""
        if self._size == 0:
            mark = self._index.last
            self._lines, self._size, self._last_us = mark.line, mark.offset, mark.previous_us
        last: Record | None = None
        for line in self._read_lines(self._size, size):
            try:
                record = decode_record(line)
            except ValueError:
                break
            self._count_line(line, record.timestamp_us)
            last = record
        if last is not None:
            self._position = last.offset
        elif self._position == 0 and self._index.last.line:
            self._index.drop_last()
            self._size = 0
            self._scan_tail(size)

    def _read_lines(self, start: int, end: int) -> Iterator[bytes]:
        """The whole lines from `start` (a line's first byte) on, up to `end`."""
        if start >= end:
            return
        with self.path.open("rb", buffering=CHUNK_BYTES) as file:
            file.seek(start)
            while start < end:
                line = file.readline(end - start)
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield line

    # reading

    def _page_ascending(self, query: LogQuery, token: int | None) -> LogPage:
        after_us = to_microseconds(query.start_time) if query.start_time else None
        until_us = to_microseconds(query.end_time) if query.end_time else None
        first = token or 0
        mark = self._index.before_line(first)
        if after_us is not None:
            mark = max(mark, self._index.before_moment(after_us))
        number, page, taken = mark.line, _PageBuilder(query.limit), False
        for line in self._read_lines(mark.offset, self._size):
            record = decode_record(line) if number >= first else None
            if record is not None and (after_us is None or record.timestamp_us > after_us):
                if until_us is not None and record.timestamp_us >= until_us:
                    return page.build(None, resume_token=str(number))
                if page.is_full:
                    taken = True
                    break
                page.add(record, len(line))
            number += 1
        end = str(max(number, first))
        return page.build(end if taken and query.limit else None, resume_token=end)

    def _page_descending(self, query: LogQuery, token: int | None) -> LogPage:
        after_us = to_microseconds(query.start_time) if query.start_time else None
        end = self._size if token is None else token
        if end > self._size or not self._starts_a_line(end):
            raise InvalidRequest(f"next_token {query.next_token!r} is not one that a page of this log gave")
        if query.end_time is not None:
            end = min(end, self._offset_after(to_microseconds(query.end_time)))
        page = _PageBuilder(query.limit)
        for line in self._read_lines_backwards(end):
            record = decode_record(line)
            if after_us is not None and record.timestamp_us <= after_us:
                return page.build(None)
            if page.is_full:
                return page.build(str(end) if query.limit else None)
            page.add(record, len(line))
            end -= len(line)
        return page.build(None)

    def _read_lines_backwards(self, end: int) -> Iterator[bytes]:
        """The lines before `end` (a line's first byte), last one first."""
        while end > 0:
            start = self._index.before_offset(end - 1).offset
            lines = list(self._read_lines(start, end))
            yield from reversed(lines)
            end = start

    def _offset_after(self, timestamp_us: int) -> int:
        """Where the first line later than a moment starts."""
        offset = self._index.before_moment(timestamp_us).offset
        for line in self._read_lines(offset, self._size):
            if decode_record(line).timestamp_us > timestamp_us:
                break
            offset += len(line)
        return offset

    def _starts_a_line(self, offset: int) -> bool:
        if offset == 0:
            return True
        with self.path.open("rb") as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"


class _PageBuilder:
    """Collects records up to the limit or the most bytes of a page."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._records: list[Record] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self._records) >= self._limit or self._bytes >= MAX_PAGE_BYTES

    def add(self, record: Record, size: int) -> None:
        self._records.append(record)
        self._bytes += size

    def build(self, next_token: str | None, resume_token: str | None = None) -> LogPage:
        events = [record.to_event() for record in self._records]
        return LogPage.model_construct(
            logs=events, external_url=None, next_token=next_token, resume_token=resume_token
        )


@contextmanager
def _store_errors(verb: str, path: Path) -> Iterator[None]:
    """Turns what goes wrong with a file into a StoreError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"Cannot {verb} logs in {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"Cannot {verb} logs: {path} is damaged", detail=str(error)) from error


def _frames_after(frames: Sequence[Frame], end_offset: int, position: int) -> list[tuple[int, bytes, int]]:
    """(timestamp, payload, end offset) of the frames that end after `position`, in order."""
    new: list[tuple[int, bytes, int]] = []
    for timestamp_us, payload in reversed(frames):
        if end_offset <= position:
            break
        new.append((timestamp_us, payload, end_offset))
        end_offset -= FRAME_HEADER.size + len(payload)
    new.reverse()
    return new


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

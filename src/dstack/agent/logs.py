"""A task's output on disk: frames in segment files named by the offset of their first byte.

One process appends (the supervisor of a process, the agent for the other executors); the agent reads.
An offset never changes its meaning, so a reader that comes back goes on where it stopped.
"""

from __future__ import annotations

import os
from typing import List, Tuple

from dstack.agent.protocol import encode_frames, whole_frames

SEGMENT_BYTES = 16 * 1024 * 1024
READ_BYTES = 256 * 1024
_ACKNOWLEDGED = "acknowledged"
_SUFFIX = ".log"


class OffsetError(ValueError):
    """The offset is not one that can be read; the message says which are."""


def list_segments(folder: str) -> List[Tuple[int, str]]:
    """(offset of the first byte, path) of each segment, oldest first."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    starts = sorted(name for name in names if name.endswith(_SUFFIX))
    return [(int(name[: -len(_SUFFIX)]), os.path.join(folder, name)) for name in starts]


def _segment(folder: str, start: int) -> str:
    return os.path.join(folder, f"{start:020d}{_SUFFIX}")


def bounds(folder: str) -> Tuple[int, int]:
    """(start, end) of what is on disk; both are the acknowledged offset when nothing is.

    While a writer is at work the end may lie inside the frame that it is writing.
    """
    segments = list_segments(folder)
    if not segments:
        acknowledged = read_acknowledged(folder)
        return acknowledged, acknowledged
    last_start, last_path = segments[-1]
    return segments[0][0], last_start + os.stat(last_path).st_size


def read_acknowledged(folder: str) -> int:
    """The offset before which everything is stored elsewhere."""
    try:
        with open(os.path.join(folder, _ACKNOWLEDGED)) as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return 0


def acknowledge(folder: str, offset: int, writing: bool) -> None:
    """Records that everything before `offset` is stored and drops segments that lie before it.

    The last segment stays while someone is `writing`. Raises OffsetError beyond the end.
    """
    end = bounds(folder)[1]
    if offset > end:
        raise OffsetError(f"the log ends at {end}, so {offset} cannot be acknowledged")
    if offset <= read_acknowledged(folder):
        return
    temporary = os.path.join(folder, _ACKNOWLEDGED + ".tmp")
    with open(temporary, "w") as file:
        file.write(str(offset))
    os.replace(temporary, os.path.join(folder, _ACKNOWLEDGED))
    drop_segments(folder, offset, keep_last=writing)


def drop_segments(folder: str, offset: int, keep_last: bool) -> None:
    """Deletes the segments that end at or before `offset`."""
    segments = list_segments(folder)
    ends = [start for start, _ in segments[1:]]
    if segments and not keep_last:
        ends.append(segments[-1][0] + os.stat(segments[-1][1]).st_size)
    for (_, path), end in zip(segments, ends):
        if end <= offset:
            os.unlink(path)


def cut_broken_tail(folder: str) -> int:
    """Cuts a frame that a killed writer left unfinished; returns the end of the log."""
    segments = list_segments(folder)
    if not segments:
        return read_acknowledged(folder)
    start, path = segments[-1]
    position = 0
    with open(path, "r+b") as file:
        while True:
            data = file.read(READ_BYTES)
            used = whole_frames(data)
            if not used:
                break
            position += used
            file.seek(position)
        file.truncate(position)
    return start + position


class LogWriter:
    """Appends frames. Each append is whole or raises OSError (disk full) and leaves nothing behind."""

    def __init__(self, folder: str, segment_bytes: int = SEGMENT_BYTES) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._folder = folder
        self._segment_bytes = segment_bytes
        self.end = cut_broken_tail(folder)
        segments = list_segments(folder)
        self._start = segments[-1][0] if segments else self.end
        self._acknowledged = 0
        self._descriptor = self._open()

    def _open(self) -> int:
        path = _segment(self._folder, self._start)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def append(self, timestamp_us: int, output: bytes) -> None:
        """Output of one moment, in as many frames as it needs."""
        self.append_frames(encode_frames(timestamp_us, output))

    def append_frames(self, frames: bytes) -> None:
        """Frames that are encoded already; they stay in one segment, a new one when the present one is full."""
        if self.end - self._start >= self._segment_bytes:
            self._rotate()
        try:
            written = os.write(self._descriptor, frames)
            while written < len(frames):
                written += os.write(self._descriptor, frames[written:])
        except OSError:
            os.ftruncate(self._descriptor, self.end - self._start)
            raise
        self.end += len(frames)

    def _rotate(self) -> None:
        old_start, old = self._start, self._descriptor
        self._start = self.end
        try:
            self._descriptor = self._open()
        except OSError:
            self._start = old_start
            raise
        os.close(old)

    def exceeds(self, limit_bytes: int) -> bool:
        """Whether more than `limit_bytes` are not stored elsewhere yet."""
        if self.end - self._acknowledged > limit_bytes:
            self._acknowledged = read_acknowledged(self._folder)
        return self.end - self._acknowledged > limit_bytes

    def close(self) -> None:
        os.close(self._descriptor)


class LogReader:
    """Reads whole frames from an offset on. Raises OffsetError when it cannot start there."""

    def __init__(self, folder: str, offset: int) -> None:
        start, end = bounds(folder)
        if not start <= offset <= end:
            raise OffsetError(f"the log reaches from {start} to {end}; {offset} is outside of it")
        self._folder = folder
        self.offset = offset
        self._segment_start = -1
        self._descriptor = -1

    def read(self) -> bytes:
        """The next frames, about `READ_BYTES` at most; empty when there are none now."""
        while True:
            if self._descriptor < 0 and not self._open():
                return b""
            data = os.pread(self._descriptor, READ_BYTES, self.offset - self._segment_start)
            used = whole_frames(data)
            if used:
                self.offset += used
                return data[:used]
            if data or not self._has_next():
                return b""
            self.close()

    def _open(self) -> bool:
        for start, path in reversed(list_segments(self._folder)):
            if start <= self.offset:
                try:
                    self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:  # acknowledged by someone else a moment ago
                    return False
                self._segment_start = start
                return True
        return False

    def _has_next(self) -> bool:
        return self.offset != self._segment_start and os.path.exists(_segment(self._folder, self.offset))

    def close(self) -> None:
        """Frees the open segment; a later `read` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

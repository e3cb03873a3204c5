"""Segments of a task's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.agent import logs
from dstack.agent.protocol import MAX_FRAME_BYTES, encode_frame, encode_frames, iter_frames

FRAME = len(encode_frame(1, b"x" * 10))


def fill(folder: Path, frames: int, segment_bytes: int = FRAME * 3) -> int:
    writer = logs.LogWriter(str(folder), segment_bytes)
    for number in range(frames):
        writer.append(number, b"%010d" % number)
    writer.close()
    return writer.end


def read_all(folder: Path, offset: int = 0) -> list[bytes]:
    reader = logs.LogReader(str(folder), offset)
    data = b""
    while part := reader.read():
        data += part
    reader.close()
    return [payload for _, payload, _ in iter_frames(data)]


def test_frames_are_read_over_segments_from_any_offset(tmp_path: Path) -> None:
    assert fill(tmp_path, 10) == 10 * FRAME
    assert len(logs.list_segments(str(tmp_path))) == 4
    for first in range(11):
        assert read_all(tmp_path, first * FRAME) == [b"%010d" % number for number in range(first, 10)]


def test_a_writer_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    end = fill(tmp_path, 4)
    _, last = logs.list_segments(str(tmp_path))[-1]
    with open(last, "ab") as file:
        file.write(encode_frame(1, b"unfinished")[:-3])
    assert fill(tmp_path, 1) == end + FRAME
    assert read_all(tmp_path)[-1] == b"0000000000"


def test_a_reader_waits_for_the_rest_of_a_frame(tmp_path: Path) -> None:
    end = fill(tmp_path, 1)
    reader = logs.LogReader(str(tmp_path), end)
    _, last = logs.list_segments(str(tmp_path))[-1]
    frame = encode_frame(1, b"rest")
    with open(last, "ab", buffering=0) as file:
        file.write(frame[:5])
        assert reader.read() == b""
        file.write(frame[5:])
        assert reader.read() == frame
    reader.close()


def test_acknowledged_segments_are_dropped(tmp_path: Path) -> None:
    end = fill(tmp_path, 10)
    logs.acknowledge(str(tmp_path), 4 * FRAME, writing=True)
    assert logs.bounds(str(tmp_path)) == (3 * FRAME, end)
    logs.acknowledge(str(tmp_path), end, writing=True)
    assert logs.bounds(str(tmp_path)) == (9 * FRAME, end)
    logs.drop_segments(str(tmp_path), end, keep_last=False)
    assert logs.bounds(str(tmp_path)) == (end, end)


def test_an_acknowledgement_never_goes_back_and_never_beyond_the_end(tmp_path: Path) -> None:
    end = fill(tmp_path, 3)
    logs.acknowledge(str(tmp_path), 2 * FRAME, writing=True)
    logs.acknowledge(str(tmp_path), FRAME, writing=True)
    assert logs.read_acknowledged(str(tmp_path)) == 2 * FRAME
    with pytest.raises(logs.OffsetError, match=f"ends at {end}"):
        logs.acknowledge(str(tmp_path), end + 1, writing=True)


def test_an_offset_outside_of_the_log_is_refused(tmp_path: Path) -> None:
    end = fill(tmp_path, 3)
    with pytest.raises(logs.OffsetError, match="outside"):
        logs.LogReader(str(tmp_path), end + 1)


@pytest.mark.parametrize(
    ("output", "sizes"),
    [
        (b"", []),
        (b"a\nb", [3]),
        (b"x" * MAX_FRAME_BYTES + b"\n", [MAX_FRAME_BYTES, 1]),
        (b"x" * (MAX_FRAME_BYTES - 10) + b"\n" + b"y" * 20 + b"\n", [MAX_FRAME_BYTES - 9, 21]),
        (b"\n" * 2 * MAX_FRAME_BYTES, [MAX_FRAME_BYTES, MAX_FRAME_BYTES]),
    ],
)
def test_output_is_cut_into_frames_after_line_ends(output: bytes, sizes: list[int]) -> None:
    frames = list(iter_frames(encode_frames(7, output)))
    assert [len(payload) for _, payload, _ in frames] == sizes
    assert b"".join(payload for _, payload, _ in frames) == output
    assert {at for at, _, _ in frames} <= {7}

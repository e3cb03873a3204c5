"""The carrier's frames, against a well-known library's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from dstack.api.ssh import carrier
from dstack.api.ssh.carrier import BINARY, CLOSE, PING, CarrierError, FrameReader, encode


def _parse(data: bytes) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=True)
    with pytest.raises(StopIteration) as stopped:
        next(parsing)
    frame: Frame = stopped.value.value
    return frame


@pytest.mark.parametrize("size", [0, 1, 3, 125, 126, 65535, 65536, 100_001])
def test_what_is_sent(size: int) -> None:
    payload = os.urandom(size)
    frame = _parse(encode(BINARY, payload, os.urandom(4)))
    assert (frame.opcode, frame.fin, frame.data) == (Opcode.BINARY, True, payload)


@pytest.mark.parametrize("cut", [1, 2, 7, 1000, 1 << 20])
def test_what_comes_in_any_pieces(cut: int) -> None:
    payloads = [os.urandom(size) for size in (0, 5, 126, 70_000)]
    frames = [Frame(Opcode.BINARY, payload) for payload in payloads]
    frames.insert(2, Frame(Opcode.PING, b"still there?"))
    frames.append(Frame(Opcode.BINARY, b"first ", fin=False))
    frames.append(Frame(Opcode.CONT, b"second"))
    frames.append(Frame(Opcode.CLOSE, b"\x03\xe8"))
    data = b"".join(frame.serialize(mask=False) for frame in frames)
    reader = FrameReader()
    found = [item for start in range(0, len(data), cut) for item in reader.feed(data[start : start + cut])]
    assert b"".join(payload for opcode, payload in found if opcode == BINARY) == (
        b"".join(payloads) + b"first second"
    )
    assert [item for item in found if item[0] != BINARY] == [(PING, b"still there?"), (CLOSE, b"\x03\xe8")]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(Frame(Opcode.TEXT, b"hi").serialize(mask=False), id="text"),
        pytest.param(Frame(Opcode.BINARY, b"hi").serialize(mask=True), id="masked"),
        pytest.param(b"\xc2\x00", id="an extension"),
    ],
)
def test_what_no_door_sends(data: bytes) -> None:
    with pytest.raises(CarrierError, match="a frame that no SSH door sends"):
        list(FrameReader().feed(data))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail": {"msg": "The token is wrong", "code": null}}', "The token is wrong"),
        (b'{"detail": [{"msg": "No", "code": "error"}]}', "No"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b"<html>", "the server does not accept the token: see `dstack project list`"),
    ],
)
def test_a_refusal_is_explained(body: bytes, message: str) -> None:
    assert carrier._explain_refusal("403", body) == message


def test_it_needs_little() -> None:
    """It starts with every `ssh`: isolated, without site packages, and none of the slow modules."""
    code = (
        f"import runpy, sys\nrunpy.run_path({carrier.__file__!r})\n"
        "print(*({'ssl', 'asyncio', 'http', 'email', 'argparse', 'dstack', 're'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() in ([], ["re"])

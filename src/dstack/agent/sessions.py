"""Sessions: the frames between a client and a program that runs beside a task."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from typing import AsyncIterator, List, Optional, Protocol, Tuple

from dstack.agent.protocol import (
    EXIT,
    INPUT,
    INPUT_END,
    MAX_FRAME_BYTES,
    RESIZE,
    SESSION_HEADER,
    SIGNAL,
    ExecExit,
    encode_session_frame,
)
from dstack.agent.streams import Stream, join

LINGER_SECONDS = 10.0
_READ_BYTES = 64 * 1024
_log = logging.getLogger(__name__)

Output = AsyncIterator[Tuple[int, bytes]]


class SessionRefused(Exception):
    """There can be no such session; `status` is that of HTTP, the message is for the user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Program(Protocol):
    """A program that has been started."""

    def outputs(self) -> List[Output]:
        """Its outputs, each of which yields (`OUTPUT` or `ERROR_OUTPUT`, at most `MAX_FRAME_BYTES`)."""
        ...

    async def write(self, data: bytes) -> None:
        """Input. Raises OSError when the program reads none any more."""
        ...

    async def end_input(self) -> None: ...

    async def resize(self, columns: int, rows: int) -> None: ...

    async def send_signal(self, number: signal.Signals) -> None: ...

    async def wait(self) -> ExecExit:
        """How it ended."""
        ...

    async def close(self) -> None:
        """Hangs it up if it still runs. May be called again."""
        ...


class Session:
    """One client and its program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._writing = asyncio.Lock()
        self._reads_input = True

    async def run(self, stream: Stream) -> None:
        """Until the program has ended and the client knows, or the client is gone."""
        parts = [
            asyncio.ensure_future(part)
            for part in (self._to_client(stream), self._from_client(stream), stream.hung_up())
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if parts[0].done() and not parts[0].exception():
                await self._linger(stream)
        finally:
            for part in parts:
                part.cancel()
            for result in await asyncio.gather(*parts, return_exceptions=True):
                _tell(result)

    async def close(self) -> None:
        await self._program.close()

    async def _to_client(self, stream: Stream) -> None:
        copies = [asyncio.ensure_future(self._copy(output, stream)) for output in self._program.outputs()]
        try:
            await asyncio.gather(*copies)
        finally:
            for part in copies:
                part.cancel()
        ended = await self._program.wait()
        await self._send(stream, EXIT, json.dumps(ended.to_json()).encode())

    async def _copy(self, output: Output, stream: Stream) -> None:
        async for kind, data in output:
            await self._send(stream, kind, data)
            await asyncio.sleep(0)

    async def _send(self, stream: Stream, kind: int, payload: bytes) -> None:
        async with self._writing:
            await stream.write(encode_session_frame(kind, payload))

    async def _linger(self, stream: Stream) -> None:
        """Lets the client read the end before the connection is closed, whatever it is still sending."""
        stream.end_writing()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stream.hung_up(), LINGER_SECONDS)

    async def _from_client(self, stream: Stream) -> None:
        """Does what the client asks for; returns when it is gone."""
        data = b""
        while True:
            more = await stream.read(_READ_BYTES)
            if not more:
                return
            data += more
            position = 0
            while position + SESSION_HEADER.size <= len(data):
                kind, length = SESSION_HEADER.unpack_from(data, position)
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                start = position + SESSION_HEADER.size
                if start + length > len(data):
                    break
                position = start + length
                await self._heed(kind, data[start:position])
            data = data[position:]

    async def _heed(self, kind: int, payload: bytes) -> None:
        if kind == INPUT:
            await self._input(payload)
        elif kind == INPUT_END:
            await self._program.end_input()
        elif kind == RESIZE:
            size = json.loads(payload)
            await self._program.resize(int(size["columns"]), int(size["rows"]))
        elif kind == SIGNAL:
            number = signal_number(payload.decode("ascii", "replace"))
            if number is not None:
                await self._program.send_signal(number)
        else:
            raise ValueError(f"a frame of the unknown kind {kind}")

    async def _input(self, data: bytes) -> None:
        if self._reads_input:
            try:
                await self._program.write(data)
            except OSError:  # the program has closed its input, which is its right: the rest is for nobody
                self._reads_input = False


def _tell(result: object) -> None:
    """Of what ended a session, tells what is not just the client's leaving."""
    if isinstance(result, (OSError, asyncio.CancelledError)):
        _log.debug("a session ended: %r", result)
    elif isinstance(result, (ValueError, KeyError, TypeError)):
        _log.warning("a session ended by a malformed frame: %s", result)
    elif isinstance(result, BaseException):
        _log.error("a session failed", exc_info=result)


def signal_number(name: str) -> Optional[signal.Signals]:
    """Of a name without SIG; None when there is no such signal."""
    return getattr(signal.Signals, "SIG" + name, None)


def signal_name(number: int) -> str:
    """Without SIG; a signal that has no name, as its number."""
    try:
        return signal.Signals(number).name[3:]
    except ValueError:
        return str(number)


class Connection:
    """One client and the connection that was made for it."""

    def __init__(self, target: Stream) -> None:
        self._target: Optional[Stream] = target

    async def run(self, stream: Stream) -> None:
        """Until both directions have ended."""
        assert self._target
        await join(stream, self._target)

    async def close(self) -> None:
        target, self._target = self._target, None
        if target is not None:
            target.close()

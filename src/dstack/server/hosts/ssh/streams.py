"""A channel of an SSH connection as a transport of asyncio, for protocols that take the bytes as they come."""

from __future__ import annotations

import asyncio
from typing import Any


class ChannelTransport(asyncio.Transport):
    """`channel`: one of asyncssh that carries bytes."""

    def __init__(self, channel: Any, session: ChannelSession) -> None:
        super().__init__()
        self._channel = channel
        self._session = session

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._channel.is_closing():
            self._channel.write(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._channel.write_eof()

    def close(self) -> None:
        self._channel.close()

    def abort(self) -> None:
        self._channel.abort()

    def is_closing(self) -> bool:
        return bool(self._channel.is_closing())

    def pause_reading(self) -> None:
        self._channel.pause_reading()

    def resume_reading(self) -> None:
        self._channel.resume_reading()

    def get_write_buffer_size(self) -> int:
        return int(self._channel.get_write_buffer_size())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._channel.set_write_buffer_limits(high, low)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._session.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._session.protocol
        return protocol


class ChannelSession:
    """What asyncssh calls; passed on to whatever protocol the transport has now."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol: Any = protocol

    def connection_made(self, channel: Any) -> None:
        self.transport = ChannelTransport(channel, self)

    def session_started(self) -> None:
        self.protocol.connection_made(self.transport)

    def data_received(self, data: bytes, datatype: object) -> None:
        if isinstance(self.protocol, asyncio.BufferedProtocol):
            self._fill(data)
        else:
            self.protocol.data_received(data)

    def _fill(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            buffer = self.protocol.get_buffer(len(rest))
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            self.protocol.buffer_updated(count)
            rest = rest[count:]

    def eof_received(self) -> bool:
        return bool(self.protocol.eof_received())

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self.protocol.connection_lost(error)

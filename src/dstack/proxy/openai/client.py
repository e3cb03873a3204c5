"""The client's side of a request: its body in, an answer out, as ASGI messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from dstack.proxy.headers import CORS_LINES, Hop
from dstack.proxy.openai.errors import ApiError
from dstack.proxy.openai.upstream import Fields
from dstack.proxy.protocol import CUT

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = (b"content-type", b"application/json")


class ClientGone(Exception):
    """Nobody waits for the answer."""


class Client:
    """One request. `body_seconds`: how long it may be silent while its body is awaited."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, is_trusted: Callable[[str], bool]) -> None:
        self.method: str = scope["method"]
        self.headers: Fields = scope["headers"]
        self.query: bytes = scope["query_string"]
        address = scope["client"][0] if scope.get("client") else ""
        self.hop = Hop(address.encode() or b"unknown", scope["scheme"].encode(), is_trusted(address))
        self.has_begun_answer = False
        self._scope = scope
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    async def read_body(self, *, max_bytes: int, max_silence: float) -> bytes:
        """Raises `ApiError` (413, 408), or `ClientGone`."""
        too_large = ApiError(413, f"The request's body is larger than {max_bytes} bytes")
        announced = self.header(b"content-length")
        if announced is not None and int(announced) > max_bytes:
            raise too_large
        pieces, length, is_whole = [], 0, False
        while not is_whole:
            try:
                message = await asyncio.wait_for(self._receive(), max_silence)
            except asyncio.TimeoutError:
                raise ApiError(408, "The request's body did not arrive in time") from None
            if message["type"] != "http.request":
                raise ClientGone
            pieces.append(message.get("body", b""))
            length += len(pieces[-1])
            if length > max_bytes:
                raise too_large
            is_whole = not message.get("more_body", False)
        return b"".join(pieces)

    async def left(self) -> None:
        """Returns once the client has gone, or has its answer."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        await self._start(status, [*_without_length(headers), (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def preflight(self, headers: Fields) -> None:
        await self._send({"type": "http.response.start", "status": 204, "headers": headers})
        await self._send({"type": "http.response.body"})

    async def answer_error(self, error: ApiError) -> None:
        await self.answer(error.status, [JSON, *error.headers], error.body())

    async def stream(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], pieces: AsyncIterator[bytes]
    ) -> None:
        """The first piece is awaited before the status line is sent, so that an early error keeps its status."""
        first = await anext(pieces, None)
        await self._start(status, headers)
        if first is not None:
            await self._send_piece(first)
            async for piece in pieces:
                await self._send_piece(piece)
        await self._send({"type": "http.response.body"})

    async def cut(self, last_words: bytes) -> None:
        """Ends the connection after `last_words`."""
        await self._send_piece(last_words)
        cut = self._scope.get("extensions", {}).get(CUT)
        if cut is not None:  # without it the server finds the answer incomplete, and closes
            cut(hard=False)
            await self.left()

    async def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.has_begun_answer = True
        kept = [field for field in headers if not field[0].startswith(b"access-control-")]
        await self._send({"type": "http.response.start", "status": status, "headers": [*kept, *_OPEN]})

    async def _send_piece(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})


def _without_length(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [field for field in headers if field[0] != b"content-length"]


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b": ")
    return name.lower(), value


_OPEN = [_field(line) for line in CORS_LINES]
"""Browsers of any site may read the answers: nothing is given to whoever has no token."""

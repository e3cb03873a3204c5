"""SSH by WebSocket at `/api/ssh`, where only the server's URL can be reached.

Binary messages carry the bytes of an SSH connection both ways. Whoever opens it shows a token, as in the REST API.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
from http import HTTPStatus
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from dstack.core.errors import DstackError, Forbidden, NotAuthenticated, RequestError, TooManyAttempts
from dstack.server.access import Caller
from dstack.server.ssh_door import websocket
from dstack.server.ssh_door.door import SshDoor
from dstack.server.ssh_door.entry import Carried, proxy_only

PATH = "/api/ssh"

logger = logging.getLogger(__name__)


def make_carrier(door: SshDoor) -> type[asyncio.Protocol]:
    """The class for `uvicorn.Config(ws=…)`."""

    class BoundCarrier(Carrier):
        leads_to = door

    return BoundCarrier


class Carrier(asyncio.Protocol):
    """A client's connection that asked for a WebSocket. Gets the request's head, read and checked, first."""

    leads_to: SshDoor

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self._state = server_state
        self._frames = websocket.FrameReader()
        self._inner: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self._has_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._state.connections.add(self)  # type: ignore[arg-type] # the server only calls `shutdown`

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        if self._opening is not None:
            self._opening.cancel()
        if self._inner is not None:
            self._inner.close()

    def shutdown(self) -> None:
        """The server is about to end."""
        self._close(websocket.GOING_AWAY, "the server is ending")

    # From the client

    def data_received(self, data: bytes) -> None:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open(data))
        elif self._inner is None:
            self._early.append(data)
        else:
            self._pass_on(self._inner, data)

    def _pass_on(self, inner: asyncio.Transport, data: bytes) -> None:
        try:
            for kind, payload in self._frames.feed(data):
                if kind == websocket.BINARY:
                    inner.write(payload)
                elif kind == websocket.PING:
                    self.transport.write(websocket.frame_head(websocket.PONG, len(payload)) + payload)
                elif kind == websocket.CLOSE:
                    self._close(websocket.NORMAL)
        except websocket.WebSocketError as error:
            self._close(error.code, str(error))

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_reading()

    def resume_writing(self) -> None:
        if self._inner is not None and not self._inner.is_closing():
            self._inner.resume_reading()

    def _close(self, code: int, reason: str = "") -> None:
        if not self._has_closed:
            self._has_closed = True
            if self._inner is not None:
                self.transport.write(websocket.close_frame(code, reason))
                self._inner.close()
            self.transport.close()

    # Opening

    async def _open(self, head: bytes) -> None:
        try:
            answer, carried = await self._answer(head)
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            await self.leads_to.adopt(theirs, carried)
            loop = asyncio.get_running_loop()
            self.transport.write(answer)
            self._inner, _ = await loop.create_connection(lambda: _Inner(self), sock=ours)
            early, self._early = self._early, []
            for data in early:
                self._pass_on(self._inner, data)
        except RequestError as error:
            self._refuse(error.status, _body(error), _fields(error))
        except DstackError as error:
            logger.error("SSH by WebSocket: %s", error.detail)
            self._refuse(503, {"detail": {"msg": str(error), "code": None}})

    async def _answer(self, head: bytes) -> tuple[bytes, Carried]:
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        method, target, _ = first.split(" ", 2)
        if target.partition("?")[0] != PATH or method != "GET":
            raise _NotHere(f"There is no WebSocket but GET {PATH}")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NotAuthenticated("Not authenticated")
        address = self._address()
        caller = await self._identify(token.strip(), address)
        try:
            return websocket.accept(headers), Carried(caller, token.strip(), address)
        except websocket.WebSocketError as error:
            raise RequestError(str(error)) from None

    def _address(self) -> str:
        peer = self.transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    async def _identify(self, token: str, address: str) -> Caller:
        """As the REST API does."""
        context = self.leads_to.ctx
        caller = await context.access.authenticate(token)
        if caller is None:
            context.failed_attempts.count(address)
            raise Forbidden("Invalid token: nobody has it, or it has expired")
        if caller.token is not None and caller.token.services_only:
            raise Forbidden("Access denied: this token is for services and models only")
        if context.settings.is_sshproxy_only:
            raise Forbidden(f"Access denied: {proxy_only(context.settings)}")
        return caller

    def _refuse(self, status: int, body: dict[str, Any], fields: str = "") -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n{fields}"
        self.transport.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        self._has_closed = True
        self.transport.close()

    # From the door

    def send(self, data: bytes) -> None:
        self.transport.write(websocket.frame_head(websocket.BINARY, len(data)))
        self.transport.write(data)

    def end(self) -> None:
        """The SSH connection has ended."""
        self._close(websocket.NORMAL)

    def hold(self, *, is_held: bool) -> None:
        if self.transport.is_closing():
            return
        if is_held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


class _Inner(asyncio.Protocol):
    """The other end of the door's connection."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    def data_received(self, data: bytes) -> None:
        self._carrier.send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._carrier.end()

    def pause_writing(self) -> None:
        self._carrier.hold(is_held=True)

    def resume_writing(self) -> None:
        self._carrier.hold(is_held=False)


class _NotHere(RequestError):
    """No WebSocket at this path."""

    status = 404
    code = None


def _body(error: RequestError) -> dict[str, Any]:
    """As the REST API has them."""
    if error.status == 400:
        return {"detail": [{"msg": str(error), "code": error.code}]}
    if error.status == 401:
        return {"detail": str(error)}
    return {"detail": {"msg": str(error), "code": None}}


def _fields(error: RequestError) -> str:
    if isinstance(error, TooManyAttempts):
        return f"Retry-After: {max(1, math.ceil(error.retry_after_seconds))}\r\n"
    return "WWW-Authenticate: Bearer\r\n" if error.status == 401 else ""

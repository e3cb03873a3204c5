"""Whether a token may use the services of a project: the server is asked, through the sockets it has made here."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from dstack.proxy.gateway.errors import ServerSilent
from dstack.proxy.gateway.known_tokens import KnownTokens

FRESH_S = 20.0
"""An answer is used without asking again."""
REMEMBERED_S = 60.0
"""A permission is, where the server is silent."""
MAX_REMEMBERED = 10_000
TIMEOUT_S = 10.0
DEAD_AFTER_S = 120.0

log = logging.getLogger(__name__)


class ServerConnections:
    """The sockets in a folder; any of them leads to the server."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._now = now
        self._clients: dict[Path, httpx.AsyncClient] = {}
        self._failing_since: dict[Path, float] = {}

    async def post(self, path: str, headers: dict[str, str]) -> httpx.Response:
        """Raises ServerSilent when none of them leads anywhere."""
        reasons = []
        for socket in self._sockets():
            try:
                response = await self._client(socket).post(path, headers=headers)
            except httpx.HTTPError as error:
                reasons.append(str(error) or type(error).__name__)
                await self._mark_failed(socket)
            else:
                self._failing_since.pop(socket, None)
                return response
        raise ServerSilent(f"The server does not answer: {'; '.join(reasons) or 'it is not connected'}")

    def _sockets(self) -> list[Path]:
        sockets = list(self._folder.glob("*.sock"))
        random.shuffle(sockets)
        return sockets

    def _client(self, socket: Path) -> httpx.AsyncClient:
        if socket not in self._clients:
            transport = httpx.AsyncHTTPTransport(
                uds=str(socket), limits=httpx.Limits(max_keepalive_connections=20)
            )
            self._clients[socket] = httpx.AsyncClient(
                transport=transport, base_url="http://server", timeout=TIMEOUT_S
            )
        return self._clients[socket]

    async def _mark_failed(self, socket: Path) -> None:
        """One that has led nowhere for long is removed: whoever made it is gone."""
        since = self._failing_since.setdefault(socket, self._now())
        if self._now() - since < DEAD_AFTER_S:
            return
        log.warning("%s leads nowhere any more and is removed", socket)
        self._failing_since.pop(socket, None)
        _remove(socket)
        client = self._clients.pop(socket, None)
        if client is not None:
            await client.aclose()

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))


def _remove(socket: Path) -> None:
    socket.unlink(missing_ok=True)


@dataclass(frozen=True)
class Answer:
    """What the server said, and when it was asked: for the app's own use, and in seconds since 1970."""

    is_allowed: bool
    asked: float
    asked_at: float


class GatewayAuth:
    """A `ProxyAuth` that remembers the server's answers for a while, and longer where the server is silent."""

    def __init__(
        self,
        connections: ServerConnections,
        known_tokens: KnownTokens,
        now: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connections = connections
        self._known_tokens = known_tokens
        self._now = now
        self._clock = clock
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._asking: dict[bytes, asyncio.Future[Answer]] = {}

    async def is_allowed(self, project: str, token: str, address: str = "") -> bool:  # of the interface
        """Raises ServerSilent where the server said neither yes nor no: that is no permission."""
        return (await self._answer(project, token)).is_allowed

    async def admit(self, project: str, authorization: str, token: str) -> tuple[bool, int]:
        """For nginx, which need not ask again about an allowed token: whether it is, and for how many seconds
        the answer may be kept. Raises ServerSilent."""
        answer = await self._answer(project, token)
        if answer.is_allowed:
            self._known_tokens.remember(project, authorization, answer.asked_at)
        else:
            self._known_tokens.forget(project, authorization)
        return answer.is_allowed, max(0, int(answer.asked + FRESH_S - self._now()))

    async def _answer(self, project: str, token: str) -> Answer:
        key = hashlib.sha256(f"{project}\0{token}".encode()).digest()
        known = self._answers.get(key)
        if known is not None and self._now() < known.asked + FRESH_S:
            return known
        try:
            return await self._ask_once(key, project, token)
        except ServerSilent:
            if known is not None and known.is_allowed and self._now() < known.asked + REMEMBERED_S:
                return known
            raise

    async def _ask_once(self, key: bytes, project: str, token: str) -> Answer:
        """Requests that come meanwhile wait for the same answer."""
        if key not in self._asking:
            asking = asyncio.ensure_future(self._ask(project, token))
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
            self._asking[key] = asking
        answer = await asyncio.shield(self._asking[key])
        self._answers[key] = answer
        self._answers.move_to_end(key)
        while len(self._answers) > MAX_REMEMBERED:
            self._answers.popitem(last=False)
        return answer

    async def _ask(self, project: str, token: str) -> Answer:
        asked, asked_at = self._now(), self._clock()
        headers = {"Authorization": f"Bearer {token}"}
        response = await self._connections.post(f"/api/projects/{project}/get", headers)
        if response.status_code == 200:
            return Answer(True, asked, asked_at)
        if response.status_code in (401, 403):
            return Answer(False, asked, asked_at)
        raise ServerSilent(f"The server answered {response.status_code} when it was asked for a permission")

"""Typed calls of the gateway app's API, over channels of the SSH connection to its host."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dstack.core.errors import DstackError, Unreachable
from dstack.proxy.stats import Counts

if TYPE_CHECKING:
    import asyncssh

APP_PORT = 8000
CALL_SECONDS = 120.0
"""A certificate may have to be issued."""


class GatewayRefused(DstackError):
    """The gateway app cannot do what it was asked for."""


@dataclass(frozen=True)
class Registered:
    """A service that the gateway publishes."""

    id: str
    project: str
    run: str
    replicas: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Usage:
    """What a service got in the last so many seconds."""

    project: str
    run: str
    windows: Mapping[int, Counts]


class GatewayClient:
    """All methods raise Unreachable when the app does not answer, GatewayRefused when it answers an error."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection

    async def version(self) -> str:
        return str((await self._call("GET", "/"))["version"])

    async def configure(self, acme_server: str | None, eab_kid: str | None, eab_hmac_key: str | None) -> None:
        body = {"acme_server": acme_server, "acme_eab_kid": eab_kid, "acme_eab_hmac_key": eab_hmac_key}
        await self._call("POST", "/api/config", body)

    async def list_services(self) -> list[Registered]:
        listed = (await self._call("GET", "/api/services/list"))["services"]
        return [
            Registered(
                one["id"], one["project_name"], one["run_name"], frozenset(r["id"] for r in one["replicas"])
            )
            for one in listed
        ]

    async def register(self, project: str, body: Mapping[str, Any]) -> None:
        await self._call("POST", f"/api/registry/{quote(project)}/services/register", body)

    async def unregister(self, project: str, run: str) -> None:
        await self._call("POST", f"/api/registry/{quote(project)}/services/{quote(run)}/unregister", {})

    async def register_replica(self, project: str, run: str, body: Mapping[str, Any]) -> None:
        await self._call("POST", f"/api/registry/{quote(project)}/services/{quote(run)}/replicas/register", body)

    async def unregister_replica(self, project: str, run: str, job_id: str) -> None:
        path = f"/api/registry/{quote(project)}/services/{quote(run)}/replicas/{job_id}/unregister"
        await self._call("POST", path, {})

    async def register_entrypoint(self, project: str, domain: str, *, https: bool) -> None:
        body = {"domain": domain, "https": https}
        await self._call("POST", f"/api/registry/{quote(project)}/entrypoints/register", body)

    async def usage(self) -> list[Usage]:
        collected = await self._call("GET", "/api/stats/collect")
        return [
            Usage(
                one["project_name"],
                one["run_name"],
                {int(window): _counts(seen) for window, seen in one["stats"].items()},
            )
            for one in collected
        ]

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        import asyncssh  # noqa: PLC0415 - loaded with the first host

        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        try:
            answer = await asyncio.wait_for(self._exchange(head.encode() + content), CALL_SECONDS)
        except (asyncssh.Error, asyncio.TimeoutError, OSError) as error:
            raise Unreachable("The gateway app does not answer", detail=str(error) or "timed out") from error
        return _decoded(answer)

    async def _exchange(self, request: bytes) -> bytes:
        reader, writer = await self._connection.open_connection("127.0.0.1", APP_PORT, encoding=None)
        try:
            writer.write(request)
            return bytes(await reader.read())
        finally:
            writer.close()


def _counts(seen: Mapping[str, Any]) -> Counts:
    """The app tells how many, and the mean of their seconds."""
    requests = int(seen["requests"])
    return Counts(requests=requests, seconds=requests * float(seen["request_time"]))


def _decoded(answer: bytes) -> Any:
    head, _, content = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[1].isdigit():
        raise Unreachable("The gateway app ended the connection without an answer")
    try:
        told = json.loads(content)
    except ValueError as error:
        raise GatewayRefused(f"The gateway app answered {words[1].decode()}", detail=str(content[:300])) from error
    if words[1] != b"200":
        detail = told.get("detail") if isinstance(told, dict) else told
        raise GatewayRefused(detail if isinstance(detail, str) else json.dumps(detail))
    return told

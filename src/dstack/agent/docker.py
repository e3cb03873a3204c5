"""A client of the Docker Engine API over its Unix socket: the calls that running a task needs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import urllib.parse
from typing import Any, AsyncIterator, Dict, NamedTuple, Optional, Tuple

from dstack.agent.http import HttpError, read_head, take_over
from dstack.agent.streams import Stream

NEWEST_VERSION = (1, 45)
CALL_SECONDS = 60.0
START_SECONDS = 300.0
_READ_BYTES = 256 * 1024
_LIMIT_BYTES = 1024 * 1024


class DockerError(Exception):
    """Docker refused; the message is for the user, `status` that of HTTP (0: told within a stream)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DockerUnreachable(DockerError):
    """There is no Docker to talk to, or the connection broke."""

    def __init__(self, message: str) -> None:
        super().__init__(0, message)


class TarFile(NamedTuple):
    """An archive on the disk, as the body of a call."""

    path: str


class Docker:
    """One Docker daemon. Every method raises DockerError."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path
        self._prefix = ""

    async def negotiate(self) -> str:
        """Agrees on a version of the API; returns it. Raises DockerUnreachable saying why there is no Docker."""
        data = await self.call("GET", "/version", seconds=5)
        major, _, minor = str(data.get("ApiVersion", "1.24")).partition(".")
        version = min((int(major), int(minor)), NEWEST_VERSION)
        self._prefix = "/v{}.{}".format(*version)
        return self._prefix[2:]

    async def call(
        self,
        method: str,
        path: str,
        query: Optional[Dict[str, Any]] = None,
        body: Any = None,
        seconds: Optional[float] = CALL_SECONDS,
    ) -> Any:
        """One call with JSON in and out; None for an empty answer."""
        try:
            data = await asyncio.wait_for(self._call(method, path, query, body), seconds)
        except asyncio.TimeoutError as error:
            raise DockerUnreachable(f"Docker did not answer within {seconds:g} s") from error
        return json.loads(data) if data.strip() else None

    async def _call(self, method: str, path: str, query: Optional[Dict[str, Any]], body: Any) -> bytes:
        return b"".join([part async for part in self.stream(method, path, query, body)])

    async def stream(
        self,
        method: str,
        path: str,
        query: Optional[Dict[str, Any]] = None,
        body: Any = None,
        headers: Optional[Dict[str, str]] = None,
    ) -> AsyncIterator[bytes]:
        """The pieces of an answer as they come. `body`: JSON, or a `TarFile`."""
        reader, writer = await self._open()
        try:
            writer.write(_request(method, self._prefix + path, query, body, headers or {}))
            await writer.drain()
            if isinstance(body, TarFile):
                await _send_file(writer, body.path)
            status, answer_headers = await _read_head(reader)
            async for part in _body(reader, answer_headers, status):
                if status >= 400:
                    raise DockerError(status, _message(part))
                yield part
            if status >= 400:
                raise DockerError(status, f"Docker answered with status {status}")
        except (OSError, asyncio.IncompleteReadError, HttpError) as error:
            raise DockerUnreachable(f"the connection to Docker broke: {error}") from error
        finally:
            writer.close()

    async def upgrade(self, path: str, body: Any) -> Stream:
        """A call after which the connection carries a stream in both directions."""
        reader, writer = await self._open()
        try:
            headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
            writer.write(_request("POST", self._prefix + path, None, body, headers))
            await writer.drain()
            status, answer_headers = await asyncio.wait_for(_read_head(reader), CALL_SECONDS)
            if status >= 400:
                parts = [part async for part in _body(reader, answer_headers, status)]
                raise DockerError(status, _message(b"".join(parts)))
            return await take_over(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, HttpError) as error:
            raise DockerUnreachable(f"the connection to Docker broke: {error}") from error
        finally:
            writer.close()

    async def _open(self) -> Tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(self._path, limit=_LIMIT_BYTES)
        except FileNotFoundError as error:
            raise DockerUnreachable(f"there is no Docker on this host (no socket at {self._path})") from error
        except PermissionError as error:
            message = (
                "the agent may not use Docker: permission denied on {}; add its user to the group that owns it"
            )
            raise DockerUnreachable(message.format(self._path)) from error
        except OSError as error:
            raise DockerUnreachable(
                f"Docker does not run on this host ({self._path}: {error.strerror})"
            ) from error

    async def pull(self, image: str, username: str, password: str) -> AsyncIterator[Dict[str, Any]]:
        """Pulls an image; yields Docker's progress messages. Raises DockerError in words for the user."""
        headers = {}
        if username or password:
            login = {"username": username, "password": password, "serveraddress": registry_of(image)}
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(json.dumps(login).encode()).decode()
        name, tag = split_image(image)
        rest = b""
        try:
            async for part in self.stream(
                "POST", "/images/create", {"fromImage": name, "tag": tag}, None, headers
            ):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield _progress(json.loads(line))
        except DockerUnreachable:
            raise
        except DockerError as error:
            raise DockerError(error.status, explain_pull(image, str(error))) from error


def _progress(message: Dict[str, Any]) -> Dict[str, Any]:
    if "error" in message:
        raise DockerError(0, str(message["error"]))
    return message


def _request(method: str, path: str, query: Optional[Dict[str, Any]], body: Any, headers: Dict[str, str]) -> bytes:
    is_file = isinstance(body, TarFile)
    data = b"" if body is None or is_file else json.dumps(body).encode()
    kind = "application/x-tar" if is_file else "application/json"
    length = os.path.getsize(body.path) if is_file else len(data)
    target = urllib.parse.quote(path) + ("?" + urllib.parse.urlencode(query) if query else "")
    fixed = {"Host": "docker", "Connection": "close", "Content-Type": kind, "Content-Length": str(length)}
    lines = [f"{name}: {value}" for name, value in {**fixed, **headers}.items()]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode() + data


async def _send_file(writer: asyncio.StreamWriter, path: str) -> None:
    with open(path, "rb") as file:  # noqa: ASYNC230 - a local file, read in pieces between which others run
        while True:
            data = file.read(_READ_BYTES)
            if not data:
                return
            writer.write(data)
            await writer.drain()


async def _read_head(reader: asyncio.StreamReader) -> Tuple[int, Dict[str, str]]:
    head = await read_head(reader)
    if head is None:
        raise ConnectionError("it was closed before the answer")
    return int(head[0].split(" ")[1]), head[1]


async def _body(reader: asyncio.StreamReader, headers: Dict[str, str], status: int) -> AsyncIterator[bytes]:
    if status in (204, 304):
        return
    if headers.get("transfer-encoding") == "chunked":
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            data = await reader.readexactly(size + 2)
            if not size:
                return
            yield data[:-2]
    elif "content-length" in headers:
        if int(headers["content-length"]):
            yield await reader.readexactly(int(headers["content-length"]))
    else:
        while True:
            data = await reader.read(_READ_BYTES)
            if not data:
                return
            yield data


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()


def split_image(image: str) -> Tuple[str, str]:
    """(name, tag or digest) of an image reference; the tag is `latest` when none is given."""
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    head, colon, tag = image.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (image, "latest")


def registry_of(image: str) -> str:
    """The host that the image is pulled from."""
    first = image.split("/")[0]
    is_host = "/" in image and ("." in first or ":" in first or first == "localhost")
    return first if is_host else "docker.io"


def explain_pull(image: str, message: str) -> str:
    """Docker's words on a failed pull, in ours."""
    low, registry = message.lower(), registry_of(image)
    if any(word in low for word in ("no basic auth", "unauthorized", "authentication required", "denied")):
        known = f"the registry {registry} refused to give the image {image}"
        hint = "check that it exists and that `registry_auth` has the right user name and password"
        return f"{known}: {hint} ({message})"
    if any(word in low for word in ("not found", "manifest unknown", "does not exist", "invalid reference")):
        return f"there is no image {image} in the registry {registry} ({message})"
    if any(
        word in low for word in ("no such host", "dial tcp", "timeout", "connection refused", "lookup ", "eof")
    ):
        return f"the registry {registry} cannot be reached from this host, which has no image {image} ({message})"
    if "no space left" in low:
        return f"the disk of the host is full: the image {image} does not fit ({message})"
    return f"the image {image} cannot be pulled: {message}"

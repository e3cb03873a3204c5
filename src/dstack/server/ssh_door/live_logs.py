"""Live logs inside of an SSH connection: what clients read at `ws://localhost:<forwarded port>/logs_ws`."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from datetime import datetime, timezone
from urllib.parse import parse_qs, urlsplit

import asyncssh

from dstack.core.errors import DstackError
from dstack.server.db.queries.ssh_door import DoorJob
from dstack.server.operations import watching
from dstack.server.operations.context import Context
from dstack.server.ssh_door import websocket
from dstack.server.stores.logs.base import LogKey, LogPage

PORT = 10999
"""Towards the job; its own processes cannot be reached there."""
PATH = "/logs_ws"
MAX_HEAD_BYTES = 16 * 1024
HEAD_SECONDS = 30.0

logger = logging.getLogger(__name__)


class _BadRequest(Exception):
    """Answered with `status`; the text says what is wrong."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


async def serve(
    ctx: Context, job: DoorJob, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]
) -> None:
    """One request: the output of the job as it is stored, until the job has ended and all of it was sent."""
    try:
        start_time = await _accept(reader, writer)
        listening = asyncio.ensure_future(_listen(reader, writer))
        sending = asyncio.ensure_future(_send(ctx, job, start_time, writer))
        try:
            await asyncio.wait((listening, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                writer.write(websocket.close_frame(*sending.result()))
        finally:
            for task in (listening, sending):
                task.cancel()
            await asyncio.gather(listening, sending, return_exceptions=True)
    except _BadRequest as error:
        writer.write(_refusal(error))
    except (BrokenPipeError, ConnectionError, asyncssh.Error, asyncio.IncompleteReadError) as error:
        logger.debug("job=%s: live logs: %r", job.id, error)
    finally:
        writer.close()


async def _accept(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> datetime | None:
    """Answers the request for a WebSocket; returns after which moment the output is wanted, None: all of it."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n", MAX_HEAD_BYTES), HEAD_SECONDS)
    except (asyncio.TimeoutError, TimeoutError):
        raise _BadRequest("408 Request Timeout", "The request's head did not arrive in time") from None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, _, rest = first.partition(" ")
    target = urlsplit(rest.partition(" ")[0])
    if method != "GET" or target.path != PATH:
        raise _BadRequest("404 Not Found", f"There is only GET {PATH} here")
    pairs = (line.partition(":") for line in lines)
    try:
        answer = websocket.accept({name.strip().lower(): value.strip() for name, _, value in pairs})
    except websocket.WebSocketError as error:
        raise _BadRequest("400 Bad Request", str(error)) from None
    start_time = _start_time(parse_qs(target.query).get("start_time", [""])[-1])
    writer.write(answer)
    return start_time


def _start_time(text: str) -> datetime | None:
    if not text:
        return None
    try:  # a "+" that was not percent-encoded comes as a space
        moment = datetime.fromisoformat(text.replace(" ", "+").replace("Z", "+00:00"))
    except ValueError:
        raise _BadRequest("400 Bad Request", f"start_time must be a time in ISO 8601, not {text!r}") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _refusal(error: _BadRequest) -> bytes:
    body = json.dumps({"detail": str(error)}).encode()
    head = f"HTTP/1.1 {error.status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


async def _send(
    ctx: Context, job: DoorJob, start_time: datetime | None, writer: asyncssh.SSHWriter[bytes]
) -> tuple[int, str]:
    """Code and reason to close with."""
    key = LogKey(job.project_name, job.run_name, job.id)
    try:
        async for page in watching.log_pages(ctx, job.project_id, key, start_time=start_time):
            data = _raw(page)
            writer.write(websocket.frame_head(websocket.BINARY if data else websocket.PING, len(data)) + data)
            await writer.drain()
    except DstackError as error:
        logger.warning("job=%s: live logs: %s", job.id, error.detail)
        return websocket.GOING_AWAY, str(error)
    return websocket.NORMAL, ""


def _raw(page: LogPage) -> bytes:
    return b"".join(base64.b64decode(event.message) for event in page.logs)


async def _listen(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
    """Until the client goes."""
    frames = websocket.FrameReader()
    while data := await reader.read(4096):
        try:
            received = frames.feed(data)
        except websocket.WebSocketError as error:
            writer.write(websocket.close_frame(error.code, str(error)))
            return
        for kind, payload in received:
            if kind == websocket.CLOSE:
                writer.write(websocket.close_frame(websocket.NORMAL))
                return
            if kind == websocket.PING:
                writer.write(websocket.frame_head(websocket.PONG, len(payload)) + payload)

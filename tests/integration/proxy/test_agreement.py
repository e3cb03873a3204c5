"""No request is read in two ways: ours and a backend agree on where each ends, judged beside nginx and haproxy.

The backend reads with h11, which shares no code with us. What either of the two proxies refuses, we refuse too,
but for the cases that say `may_pass`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h11
from tests.integration.proxy.conftest import Proxy
from tests.integration.proxy.smuggling import CASES, PATH

from dstack.proxy.repo import Service

SILENCE = 0.2
"""Seconds without an answer after which a proxy is taken to wait for more of the request."""


@dataclass
class Backend:
    """What was sent to it since `clear`, as h11 reads it."""

    port: int = 0
    targets: list[str] = field(default_factory=list)
    """Of the requests that came as a whole."""
    errors: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.targets, self.errors = [], []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except h11.RemoteProtocolError as error:
            if "without sending complete message" not in str(error):  # a proxy left while the request went wrong
                self.errors.append(str(error))
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        request: h11.Request | None = None
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif event is h11.PAUSED:
                if connection.our_state is not h11.DONE:
                    return
                connection.start_next_cycle()
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                self.targets.append(request.target.decode("latin-1"))
                self._answer(connection, writer, has_body=request.method != b"HEAD")
                if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
                    connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                return

    def _answer(self, connection: h11.Connection, writer: asyncio.StreamWriter, *, has_body: bool) -> None:
        body = b"seen by the backend"
        head = h11.Response(status_code=200, headers=[("Content-Length", str(len(body)))])
        for event in (head, *([h11.Data(data=body)] if has_body else []), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")


@dataclass
class Verdict:
    """What became of a request that was sent to a proxy."""

    statuses: list[int]
    targets: list[str]
    errors: list[str]
    """As the backend saw them."""

    @property
    def is_sound(self) -> bool:
        is_hidden = any("smuggled" in target for target in self.targets)
        return not is_hidden and not self.errors and self.statuses.count(200) == len(self.targets)


async def send(port: int, data: bytes, backend: Backend) -> Verdict:
    backend.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(data)
        await writer.drain()
        while chunk := await asyncio.wait_for(reader.read(65536), SILENCE):
            answer += chunk
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return Verdict(statuses_of(answer), backend.targets, backend.errors)


def statuses_of(answer: bytes) -> list[int]:
    """Of the final answers; the backend's bodies hold no status line."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([2-5]\d\d)", answer)]


@asynccontextmanager
async def accepting(backend: Backend) -> AsyncIterator[Backend]:
    server = await asyncio.start_server(backend.handle, "127.0.0.1", 0)
    backend.port = server.sockets[0].getsockname()[1]
    async with server:
        yield backend


@asynccontextmanager
async def running(program: str, *arguments: str, port: int) -> AsyncIterator[int]:
    """Runs a proxy until the block ends; yields its port once it accepts."""
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        while True:
            assert process.returncode is None, f"{program} ended"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def nginx(folder: Path, port: int, backend: int) -> tuple[str, ...]:
    (folder / "nginx.conf").write_text(
        f"""daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location {PATH}/ {{ proxy_pass http://backend/; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""
    )
    return ("-e", str(folder / "start.log"), "-p", str(folder), "-c", str(folder / "nginx.conf"))


def haproxy(folder: Path, port: int, backend: int) -> tuple[str, ...]:
    (folder / "haproxy.cfg").write_text(
        f"""defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
frontend all
  bind 127.0.0.1:{port}
  default_backend one
backend one
  http-request replace-path {PATH}/(.*) /\\1
  server one 127.0.0.1:{backend}
"""
    )
    return ("-db", "-f", str(folder / "haproxy.cfg"))


OTHERS: dict[str, Callable[[Path, int, int], tuple[str, ...]]] = {"nginx": nginx, "haproxy": haproxy}


async def test_a_request_ends_in_one_place_for_ours_and_the_backend_and_ours_is_the_strictest(
    proxy: Proxy, free_ports: Callable[[int], list[int]], tmp_path: Path
) -> None:
    """What reaches the backend is well-formed, answered once each, and never what a body hid."""
    programs = [program for program in OTHERS if shutil.which(program)]
    ours, *others = await asyncio.gather(
        judge_ours(proxy),
        *(
            judge_other(program, tmp_path, port)
            for program, port in zip(programs, free_ports(len(programs)), strict=True)
        ),
    )
    assert {name: verdict for name, verdict in ours.items() if not verdict.is_sound} == {}
    refused_elsewhere = {case.name for case in CASES if any(not other[case.name].targets for other in others)}
    passed = {case.name for case in CASES if ours[case.name].targets and not case.may_pass}
    assert passed & refused_elsewhere == set()


async def judge_ours(proxy: Proxy) -> dict[str, Verdict]:
    async with accepting(Backend()) as backend:
        proxy.services["main", "open"] = Service(
            "open", "main", "open", False, True, (f"127.0.0.1:{backend.port}",)
        )
        return {case.name: await send(proxy.port, case.data, backend) for case in CASES}


async def judge_other(program: str, folder: Path, port: int) -> dict[str, Verdict]:
    async with (
        accepting(Backend()) as backend,
        running(program, *OTHERS[program](folder, port, backend.port), port=port),
    ):
        return {case.name: await send(port, case.data, backend) for case in CASES}

"""Clients that people use, against an ASGI application behind the proxy: a browser, `websockets`, curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import websockets
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from tests.integration.proxy.conftest import TOKEN, Proxy
from websockets.typing import Subprotocol

from dstack.proxy.repo import Service

PAGE = """<!doctype html><title>service</title><script>
const report = {};
async function main() {
  report.text = await (await fetch("text?q=%2F")).text();
  report.missing = (await fetch("no/such")).status;
  report.uploaded = await (await fetch("length", {method: "POST", body: new Uint8Array(3000000)})).json();
  const reader = (await fetch("events")).body.getReader();
  report.first_piece = new TextDecoder().decode((await reader.read()).value);
  await reader.cancel();
  report.events = await new Promise((resolve, reject) => {
    const source = new EventSource("events"), seen = [];
    source.onerror = reject;
    source.onmessage = async (event) => {
      seen.push(event.data);
      if (seen.length == 3) { source.close(); resolve(seen); }
      else await fetch("next", {method: "POST"});
    };
  });
  report.echoes = await new Promise((resolve, reject) => {
    const socket = new WebSocket(new URL("ws", location.href.replace("http", "ws"))), seen = [];
    socket.onerror = reject;
    socket.onopen = () => { socket.send("text"); socket.send("x".repeat(200000)); };
    socket.onmessage = (event) => {
      seen.push(event.data.length);
      if (seen.length == 2) socket.close(3001, "enough");
    };
    socket.onclose = (event) => resolve([...seen, event.code]);
  });
}
main().catch(error => { report.error = String(error); })
  .finally(() => fetch("report", {method: "POST", body: JSON.stringify(report)}));
</script>"""


class Application:
    """An event stream that goes on only when it is told to, an echo, an upload, and what a page reports."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.asked = asyncio.Queue[None]()
        self.report: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.app.get("/")(self.page)
        self.app.get("/text")(self.text)
        self.app.post("/length")(self.length)
        self.app.get("/events")(self.events)
        self.app.post("/next")(self.next)
        self.app.post("/report")(self.take_report)
        self.app.websocket("/ws")(self.echo)

    async def page(self) -> HTMLResponse:
        return HTMLResponse(PAGE)

    async def text(self, q: str) -> Response:
        return Response(f"q is {q}", media_type="text/plain")

    async def length(self, request: Request) -> int:
        return len(await request.body())

    async def events(self) -> StreamingResponse:
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        for number in range(1000):
            yield f"data: {number}\n\n"
            await self.asked.get()

    async def next(self) -> None:
        self.asked.put_nowait(None)

    async def take_report(self, request: Request) -> None:
        self.report.set_result(json.loads(await request.body()))

    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept(subprotocol=(websocket.scope["subprotocols"] or [None])[0])
        async for text in websocket.iter_text():
            await websocket.send_text(text)


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """Its address."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", ws="websockets-sansio", timeout_graceful_shutdown=1)
    )
    task = asyncio.create_task(server._serve([sock]))
    try:
        yield f"127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await task


@pytest.fixture
async def application(proxy: Proxy) -> AsyncIterator[Application]:
    """Published as `main/app` for members and as `main/open` for everybody."""
    application = Application()
    async with serving(application.app) as address:
        for name, has_auth in (("app", True), ("open", False)):
            proxy.services["main", name] = Service(name, "main", name, has_auth, True, (address,))
        yield application


async def run(*command: str, stdin: bytes = b"") -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out


async def test_a_browser_fetches_streams_and_keeps_sockets(
    proxy: Proxy, application: Application, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    url = f"http://127.0.0.1:{proxy.port}/proxy/services/main/open/"
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += [
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
        "--remote-debugging-port=0",
    ]
    process = await asyncio.create_subprocess_exec(
        chromium, *flags, url, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        report = await asyncio.wait_for(application.report, 60)
    finally:
        process.terminate()
        await process.wait()
    assert report == {
        "text": "q is /",
        "missing": 404,
        "uploaded": 3_000_000,
        "first_piece": "data: 0\n\n",
        "events": ["0", "1", "2"],
        "echoes": [4, 200_000, 3001],
    }


@pytest.mark.usefixtures("application")
async def test_b3_websockets_of_a_library(proxy: Proxy) -> None:
    url = f"ws://127.0.0.1:{proxy.port}/proxy/services/main/app/ws"
    allowed = {"Authorization": f"Bearer {TOKEN}"}
    async with websockets.connect(url, additional_headers=allowed, subprotocols=[Subprotocol("chat")]) as socket:
        assert socket.subprotocol == "chat"
        for size in (0, 125, 126, 65535, 65536, 900_000):
            await socket.send("x" * size)
            assert len(await socket.recv()) == size
        await (await socket.ping())
        await socket.close(3000, "bye")
        assert socket.close_code == 3000
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(url):
            pass
    assert refused.value.response.status_code == 403


@pytest.mark.usefixtures("application")
async def test_many_websockets_do_not_mix(proxy: Proxy) -> None:
    url = f"ws://127.0.0.1:{proxy.port}/proxy/services/main/open/ws"

    async def talk(number: int) -> bool:
        async with websockets.connect(url) as socket:
            for count in range(5):
                await socket.send(f"{number}/{count}")
                if await socket.recv() != f"{number}/{count}":
                    return False
        return True

    assert all(await asyncio.gather(*(talk(number) for number in range(100))))


@pytest.mark.usefixtures("application")
@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["text?q=1"], b"", b"q is 1"),
        (["--http1.0", "text?q=1"], b"", b"q is 1"),
        (["-H", "Expect: 100-continue", "--data-binary", "@-", "length"], b"x" * 2_000_000, b"2000000"),
        (["-X", "POST", "-T", "-", "length"], b"x" * 2_000_000, b"2000000"),
        (["-o", "/dev/null", "-w", "%{http_code} %{size_download}", "-I", "no/such"], b"", b"404 0"),
        (["-o", "/dev/null", "-w", "%{http_code}", "-X", "DELETE", "text"], b"", b"405"),
        (["-o", "/dev/null", "-w", "%{http_code}", "--path-as-is", "../../../../etc/passwd"], b"", b"404"),
    ],
)
async def test_curl(proxy: Proxy, arguments: list[str], stdin: bytes, expected: bytes) -> None:
    *options, path = arguments
    url = f"http://127.0.0.1:{proxy.port}/proxy/services/main/app/{path}"
    command = ["curl", "-s", "-m", "30", "-H", f"Authorization: Bearer {TOKEN}", *options, url]
    assert await run(*command, stdin=stdin) == (0, expected)

"""The gateway app with a real nginx on free ports, services in this process, and a server that knows one token."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Header, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

from dstack.proxy.gateway.app import make_app
from dstack.proxy.gateway.settings import GatewaySettings

T = TypeVar("T")
TOKEN = "good"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}
NGINX_CONF = """\
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    access_log off;
    include {folder}/sites/*;
}}
"""


@dataclass
class FakeServer:
    """Answers who may use a project, as the server's API does."""

    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {TOKEN})

    def app(self) -> FastAPI:
        app = FastAPI()
        app.post("/api/projects/{project}/get")(self.get_project)
        return app

    async def get_project(self, project: str, response: Response, authorization: str = Header()) -> dict[str, str]:
        self.asked.append(authorization)
        if authorization.removeprefix("Bearer ") not in self.tokens:
            response.status_code = 403
        return {"project_name": project}


class Backend:
    """A replica: tells what it got."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heads: list[dict[str, str]] = []
        self.app = FastAPI()
        self.app.websocket("/ws")(self.echo)
        self.app.get("/stream")(self.stream)
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])(self.answer)

    async def answer(self, request: Request) -> dict[str, Any]:
        self.heads.append(dict(request.headers))
        body = await request.body()
        return {"replica": self.name, "target": request.scope["raw_path"].decode(), "length": len(body)}

    async def chat(self, request: Request) -> dict[str, Any]:
        self.heads.append(dict(request.headers))
        return {"object": "chat.completion", "echo": await request.json(), "choices": []}

    async def stream(self) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            for number in range(100):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)


@asynccontextmanager
async def serving(app: Any, *, uds: Path | None = None, port: int | None = None) -> AsyncIterator[None]:
    sock = socket.socket(socket.AF_UNIX) if uds is not None else socket.socket()
    if uds is None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(str(uds) if uds is not None else ("127.0.0.1", port))
    if uds is not None:
        uds.chmod(0o666)
    config = uvicorn.Config(app, log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with sock:
        task = asyncio.create_task(server._serve([sock]))
        try:
            while not server.started:
                assert not task.done(), "it did not start"
                await asyncio.sleep(0.01)
            yield
        finally:
            server.should_exit = True
            await task


@dataclass
class Gateway:
    settings: GatewaySettings
    server: FakeServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.http_port}"

    async def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer of the app's API; raises AssertionError with the detail of a refusal."""
        status, answer = await self.call(path, body)
        assert status == 200, answer
        return answer

    async def call(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"http://127.0.0.1:{self.settings.app_port}{path}"
            response = await (client.get(url) if body is None else client.post(url, json=body))
        return response.status_code, response.json()

    async def publish(self, name: str, *sockets: Path, **fields: Any) -> None:
        """As `<name>.example`, with a replica at each socket."""
        service = {
            "id": f"run-{name}",
            "run_name": name,
            "domain": f"{name}.example",
            "https": False,
            "auth": True,
            "client_max_body_size": 1_000_000,
            "options": {},
            "ssh_private_key": "",
            "rate_limits": [],
            **fields,
        }
        await self.api("/api/registry/main/services/register", service)
        for number, path in enumerate(sockets):
            replica = {"job_id": f"{name}-{number}", "app_port": 80, "socket": str(path)}
            await self.api(f"/api/registry/main/services/{name}/replicas/register", replica)

    async def request(
        self,
        name: str,
        path: str = "/",
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """To the service of that name, with a good token."""
        headers = {"Host": f"{name}.example", **(ALLOWED if headers is None else headers)}
        async with httpx.AsyncClient(timeout=20) as client:
            return await client.request(method, self.url + path, headers=headers, **options)


@asynccontextmanager
async def running_nginx(folder: Path, port: int) -> AsyncIterator[tuple[str, ...]]:
    """Its command line, to which options are added."""
    (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder))
    (folder / "sites").mkdir()
    starter = folder / "sites" / "00-dstack.conf"
    starter.write_text(f"server {{ listen {port} default_server; return 404; }}\n")
    command = ("nginx", "-e", f"{folder}/start.log", "-p", str(folder), "-c", f"{folder}/nginx.conf")
    process = await asyncio.create_subprocess_exec(*command)
    try:
        while not (folder / "nginx.pid").exists() or not (folder / "nginx.pid").read_text():
            assert process.returncode is None, (folder / "start.log").read_text()
            await asyncio.sleep(0.01)
        yield command
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for names of sockets."""
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        Path(folder).chmod(0o755)  # nginx's workers go through it
        yield Path(folder)


@pytest.fixture
async def gateway(
    short_path: Path, free_ports: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    http, https, app = free_ports(3)
    nginx_dir = short_path / "nginx"
    nginx_dir.mkdir()
    async with running_nginx(nginx_dir, http) as nginx:
        settings = GatewaySettings(
            dir=short_path / "dstack",
            runtime_dir=short_path / "run",
            app_port=app,
            http_port=http,
            https_port=https,
            sites_dir=nginx_dir / "sites",
            access_log=nginx_dir / "access.log",
            auth_cache_dir=nginx_dir / "auth",
            acme_webroot=short_path / "acme",
            letsencrypt_dir=short_path / "letsencrypt",
            nginx_pid_file=nginx_dir / "nginx.pid",
            nginx_test=(*nginx, "-t", "-q"),
            nginx_reload=(*nginx, "-s", "reload"),
        )
        server = FakeServer()
        settings.server_connections.mkdir(parents=True)
        async with serving(server.app(), uds=settings.server_connections / "a.sock"):
            yield Gateway(settings, server)


@pytest.fixture
async def app(gateway: Gateway) -> AsyncIterator[Gateway]:
    """The gateway with its app running."""
    async with serving(make_app(gateway.settings), port=gateway.settings.app_port):
        yield gateway


@asynccontextmanager
async def replicas(folder: Path, *names: str) -> AsyncIterator[dict[str, tuple[Path, Backend]]]:
    """Sockets and what listens there, by name."""
    made = {name: (folder / f"{name}.s", Backend(name)) for name in names}
    async with AsyncExitStack() as stack:
        for path, backend in made.values():
            await stack.enter_async_context(serving(backend.app, uds=path))
        yield made


async def eventually(probe: Callable[[], Awaitable[T]], expected: T, seconds: float = 20) -> None:
    """Returns once it answers that; fails with what it answered last."""
    deadline = asyncio.get_running_loop().time() + seconds
    while (seen := await probe()) != expected:
        assert asyncio.get_running_loop().time() < deadline, seen
        await asyncio.sleep(0.05)

"""A gateway with tokens checked, beside plain nginx over the same Unix socket: both are sites of one nginx."""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from tests.fixtures.ports import take_free_port

from bench.measure import Benchmark, Result, at_least, at_most
from dstack.proxy.gateway.settings import GatewaySettings

ROUNDS = 3
SECONDS = 4
MANY = 500
UNDER_LOAD = 50
CONNECTIONS = 32
SETTLING_S, DOWN_S, AFTER_S = 1, 8, 4
ALLOWED = "Authorization: Bearer token"
NGINX = """\
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 1000000000;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    upstream plain {{ server unix:{folder}/replica.sock; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen {port}; server_name plain.example;
        location / {{ proxy_pass http://plain; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
    include {folder}/sites/*;
}}
"""
REPLICA = """\
daemon off; worker_processes 1; pid {folder}/replica.pid; error_log {folder}/replica.log crit;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/r1; proxy_temp_path {folder}/r2;
    fastcgi_temp_path {folder}/r3; uwsgi_temp_path {folder}/r4; scgi_temp_path {folder}/r5;
    server {{ listen unix:{folder}/replica.sock backlog=4096; location / {{ return 200 "{body}"; }} }}
}}
"""


@dataclass(frozen=True)
class Load:
    """What `wrk` measured: requests per second, the 99th percentile in ms, and how many went wrong."""

    rate: float
    p99: float
    failed: int


@dataclass
class Clients:
    """Requests over kept connections. As all HTTP clients do, they repeat one whose connection was closed idle."""

    port: int
    host: str
    answered: int = 0
    failed: int = 0
    closed_idle: int = 0

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Clients]:
        tasks = [asyncio.create_task(self._work()) for _ in range(CONNECTIONS)]
        try:
            await asyncio.sleep(SETTLING_S)
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        request = f"GET / HTTP/1.1\r\nHost: {self.host}\r\n{ALLOWED}\r\n\r\n".encode()
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            is_new = True
            try:
                while await self._ask(reader, writer, request, is_new=is_new):
                    is_new = False
            finally:
                writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, *, is_new: bool
    ) -> bool:
        """Whether the connection can be used again."""
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            is_idle = not is_new and not getattr(error, "partial", b"")
            self.closed_idle += is_idle
            self.failed += not is_idle
            return False
        self.answered += 1
        self.failed += b" 200 " not in head[:20]
        return b"Connection: close" not in head

    def results(self, what: str) -> list[Result]:
        told = f"{self.answered:,} answered; {self.closed_idle} idle connections closed"
        return [at_most(f"gateway, failed requests {what}", 0, self.failed, ""), Result("  besides", "", told)]


@dataclass
class App:
    """The gateway app, a process of its own."""

    settings: GatewaySettings
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        file = self.settings.dir / "settings.json"
        file.write_text(json.dumps(asdict(self.settings), default=str))
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dstack.proxy.gateway.main", "--settings", str(file)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=asyncio.subprocess.DEVNULL,
        )
        while not await self._answers():
            assert self.process.returncode is None, "the app ended"
            await asyncio.sleep(0.05)

    async def _answers(self) -> bool:
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"http://127.0.0.1:{self.settings.app_port}/")).status_code == 200
        except httpx.TransportError:
            return False

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@dataclass(frozen=True)
class Bench:
    settings: GatewaySettings
    app: App

    async def call(self, path: str, body: dict[str, Any]) -> None:
        async with httpx.AsyncClient(timeout=120) as client:
            url = f"http://127.0.0.1:{self.settings.app_port}{path}"
            (await client.post(url, json=body)).raise_for_status()

    async def publish(self, name: str) -> None:
        service = {"id": name, "run_name": name, "domain": f"{name}.example", "https": False, "auth": True}
        service |= {"client_max_body_size": 0, "ssh_private_key": ""}
        await self.call("/api/registry/main/services/register", service)

    async def add_replica(self, name: str, socket: Path) -> None:
        replica = {"job_id": f"{name}-0", "app_port": 80, "socket": str(socket)}
        await self.call(f"/api/registry/main/services/{name}/replicas/register", replica)

    async def load(self, host: str, connections: int, seconds: int = SECONDS) -> Load:
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--latency",
            "-H",
            f"Host: {host}",
            "-H",
            ALLOWED,
        ]
        process = await asyncio.create_subprocess_exec(
            *command, f"http://127.0.0.1:{self.settings.http_port}/", stdout=asyncio.subprocess.PIPE
        )
        text = (await process.communicate())[0].decode()
        return Load(_number(r"Requests/sec:\s*([\d.]+)", text), _milliseconds(text), _failed(text))


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found.group(1)) if found else 0.0


def _milliseconds(text: str) -> float:
    found = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    assert found is not None, text
    return float(found.group(1)) * {"us": 0.001, "ms": 1, "s": 1000}[found.group(2)]


def _failed(text: str) -> int:
    refused = _number(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return int(refused) + (sum(map(int, errors.groups())) if errors else 0)


def gateway(folder: Path) -> list[Result]:
    """a gateway's nginx, tokens checked: share of plain nginx's requests/s; services registered under load"""
    folder.chmod(0o755)  # nginx's workers go through it
    return asyncio.run(_measure(folder))


async def _measure(folder: Path) -> list[Result]:
    async with _gateway(folder) as bench:
        await bench.publish("ours")
        await bench.add_replica("ours", folder / "replica.sock")
        results = [result for connections in (1, 32, 256) for result in await _compare(bench, connections)]
        for number in range(MANY):
            await bench.publish(f"many-{number}")
        started = time.perf_counter()
        await bench.publish("one-more")
        results.append(at_most(f"gateway, one more service beside {MANY}", 1, time.perf_counter() - started, "s"))
        async with Clients(bench.settings.http_port, "ours.example").at_work() as clients:
            started = time.perf_counter()
            await asyncio.gather(*(bench.publish(f"under-load-{number}") for number in range(UNDER_LOAD)))
            seconds = time.perf_counter() - started
        results += clients.results(f"while {UNDER_LOAD} services are registered at once")
        results.append(Result("  all registered within", "", f"{seconds:.1f} s"))
        async with Clients(bench.settings.http_port, "ours.example").at_work() as clients:
            await bench.app.kill()
            await asyncio.sleep(DOWN_S)
            await bench.app.start()
            await asyncio.sleep(AFTER_S)
        results += clients.results(f"while the app is killed and is away for {DOWN_S} s")
        return results


async def _compare(bench: Bench, connections: int) -> list[Result]:
    """In turn, so that what else the machine does falls on both."""
    plain, ours = [], []
    for _ in range(ROUNDS):
        plain.append(await bench.load("plain.example", connections))
        ours.append(await bench.load("ours.example", connections))
    assert not any(load.failed for load in ours), ours
    share = statistics.median(a.rate / b.rate for a, b in zip(ours, plain, strict=True))
    added = statistics.median(a.p99 - b.p99 for a, b in zip(ours, plain, strict=True))
    rate = statistics.median(load.rate for load in ours)
    return [
        at_least(f"gateway, {connections} connections, share of plain nginx", 0.9, share, "of it"),
        at_most("  added p99", 1, added, "ms"),
        Result("  gateway", "", f"{rate:,.0f} req/s"),
    ]


@asynccontextmanager
async def _gateway(folder: Path) -> AsyncIterator[Bench]:
    http, app = take_free_port(), take_free_port()
    nginx = ("nginx", "-e", f"{folder}/start.log", "-p", str(folder), "-c", f"{folder}/nginx.conf")
    (folder / "sites").mkdir()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=http))
    (folder / "replica.conf").write_text(REPLICA.format(folder=folder, body="x" * 1024))
    settings = GatewaySettings(
        dir=folder / "dstack",
        runtime_dir=folder / "run",
        app_port=app,
        http_port=http,
        https_port=take_free_port(),
        sites_dir=folder / "sites",
        access_log=folder / "access.log",
        auth_cache_dir=Path(f"/dev/shm/{folder.name}"),
        nginx_pid_file=folder / "pid",
        nginx_test=(*nginx, "-t", "-q"),
        nginx_reload=(*nginx, "-s", "reload"),
    )
    settings.server_connections.mkdir(parents=True)
    async with (
        _running(folder / "replica.pid", "nginx", "-e", f"{folder}/r.log", "-c", f"{folder}/replica.conf"),
        _running(folder / "pid", *nginx),
        _serving(_server(), uds=str(settings.server_connections / "a.sock")),
    ):
        process = App(settings)
        try:
            await process.start()
            yield Bench(settings, process)
        finally:
            await process.kill()


def _server() -> FastAPI:
    """Lets everybody in."""
    app = FastAPI()

    @app.post("/api/projects/{project}/get")
    async def get_project(project: str) -> dict[str, str]:
        return {"project_name": project}

    return app


@asynccontextmanager
async def _running(pid_file: Path, *command: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*command)
    try:
        while not _is_written(pid_file):
            assert process.returncode is None, "nginx ended"
            await asyncio.sleep(0.01)
        yield
    finally:
        process.terminate()
        await process.wait()


def _is_written(pid_file: Path) -> bool:
    return pid_file.exists() and pid_file.stat().st_size > 0


@asynccontextmanager
async def _serving(app: FastAPI, **where: Any) -> AsyncIterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, **where))
    task = asyncio.ensure_future(server.serve())
    try:
        while not server.started:
            assert not task.done(), "it did not start"
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await task


BENCHMARKS: list[Benchmark] = [gateway]
"""Of gateways."""

"""The server as a process: from the command line to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

import dstack
from dstack.core.errors import DstackError
from dstack.core.server_config import ServerConfig
from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.protocol import make_http_protocol
from dstack.proxy.waking import HoldLimits
from dstack.server import config, first_start
from dstack.server import settings as settings_module
from dstack.server.access import DefaultPermissions
from dstack.server.app import running
from dstack.server.db.engine import Database
from dstack.server.encryption import Encryption
from dstack.server.proxy.deps import in_server_proxy
from dstack.server.proxy.tunnels import ReplicaTunnels
from dstack.server.settings import Settings
from dstack.server.ssh_door import listening
from dstack.server.ssh_door.carrier import make_carrier

logger = logging.getLogger("dstack.server")


class StartError(DstackError):
    """The server cannot start; the text is for the person who starts it."""


def run(
    host: str | None = None,
    port: int | None = None,
    log_level: str | None = None,
    token: str | None = None,
    update_default_project: bool | None = None,
) -> int:
    """What `dstack server` does; returns the exit status. Arguments beat the environment.

    `update_default_project`: True for `-y`, False for `-n`, None for neither.
    """
    try:
        settings = _settings(host, port, log_level, token, update_default_project)
        set_up_logging(settings)
        _run_loop(settings)
    except DstackError as error:
        sys.stdout.flush()
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _settings(
    host: str | None,
    port: int | None,
    log_level: str | None,
    token: str | None,
    update_default_project: bool | None,
) -> Settings:
    environ = dict(os.environ)
    arguments = {
        "DSTACK_SERVER_HOST": host,
        "DSTACK_SERVER_PORT": None if port is None else str(port),
        "DSTACK_SERVER_LOG_LEVEL": log_level,
        "DSTACK_SERVER_ADMIN_TOKEN": token,
    }
    environ.update({name: value for name, value in arguments.items() if value is not None})
    if update_default_project is not None:
        environ.pop("DSTACK_UPDATE_DEFAULT_PROJECT", None)
        environ.pop("DSTACK_DO_NOT_UPDATE_DEFAULT_PROJECT", None)
        flag = (
            "DSTACK_UPDATE_DEFAULT_PROJECT" if update_default_project else "DSTACK_DO_NOT_UPDATE_DEFAULT_PROJECT"
        )
        environ[flag] = "1"
    return settings_module.load(environ)


def _run_loop(settings: Settings) -> None:
    if sys.platform == "win32":
        raise StartError("The server runs on Linux and macOS; on Windows use WSL 2")
    import uvloop  # noqa: PLC0415 - not there on Windows

    from dstack.proxy.open_files import allow_many_open_files  # noqa: PLC0415 - as above

    allow_many_open_files()
    uvloop.run(serve(settings))


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT; open requests are given `shutdown_timeout` seconds to end."""
    listener = _listen(settings)
    settings = replace(settings, port=listener.getsockname()[1])
    with contextlib.closing(listener), listening.bind(settings) as ssh:
        settings = replace(settings, ssh_port=ssh.port)
        permissions = DefaultPermissions()
        file = None
        if not settings.config_disabled:
            _say(f"Applying {config.shown(settings.config_path)}...\n")
            file = config.read_or_make(settings.config_path)
            permissions = config.permissions_of(file)
        encryption, key_message = config.encryption_of(file, settings.server_dir)
        database = await Database.open(settings.database_url)
        try:
            messages = await _prepare(settings, database, encryption, file)
            async with running(settings, database, encryption, permissions) as app:
                context = app.state.context
                ssh_messages = (ssh.message, listening.proxy_warning(settings))
                lines = [line for line in (key_message, *messages[:-1], *ssh_messages, messages[-1]) if line]
                door = app.state.ssh_door
                proxy = in_server_proxy(
                    database,
                    context.access,
                    context.failed_attempts,
                    ReplicaTunnels(database, app.state.ssh_hosts, settings.tunnel_keys_dir),
                    timeout=settings.service_client_timeout,
                    max_body_bytes=settings.service_max_body_size,
                    holding=HoldLimits(settings.service_hold_timeout, settings.service_hold_limit),
                )
                app.mount("/proxy/models", proxy.models)
                proxy.start()
                try:
                    http = _Server(
                        _uvicorn(settings, app, proxy.dependencies, make_carrier(door)), lines, context.stopping
                    )
                    http.on_started = lambda: door.open(ssh.listener)
                    await http.serve(sockets=[listener])
                finally:
                    await proxy.stop()
        finally:
            await database.close()


async def _prepare(
    settings: Settings,
    database: Database,
    encryption: Encryption,
    file: ServerConfig | None,
) -> list[str]:
    """First start and config.yml; returns what to tell."""
    admin = await first_start.ensure_admin(database, encryption, settings.admin_token)
    is_new = await first_start.ensure_main_project(database, encryption)
    if file is not None:
        await config.apply(file, database, encryption)
    messages = []
    wants_local = first_start.wants_local_backend(settings) and (is_new or settings.local_backend == "on")
    if wants_local and await first_start.ensure_local_backend(database, encryption):
        messages.append("Project 'main' runs on this machine: backend and fleet 'local' (DSTACK_LOCAL_BACKEND)")
    told = await asyncio.to_thread(first_start.tell_client, settings, admin.token)
    if told:
        messages.append(told)
    if admin.created:
        messages.append(f'The admin token is "{admin.token}"')
    messages.append(f"The server is running at {settings.public_url}/")
    return messages


def _listen(settings: Settings) -> socket.socket:
    """Bound before anything else is done, so that a taken port is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StartError(f"Cannot listen on {settings.host!r}: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # two that are only bound may share a port; whoever connects meanwhile waits
    except OSError as error:
        listener.close()
        raise StartError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}; stop what uses the port "
            "or choose another one with --port"
        ) from None
    listener.setblocking(False)
    return listener


def _uvicorn(
    settings: Settings, app: FastAPI, proxy: ProxyDependencies, websockets: type[asyncio.Protocol]
) -> uvicorn.Config:
    return uvicorn.Config(
        cast(Any, app),
        http=make_http_protocol(proxy),
        ws=websockets,
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )


class _Server(uvicorn.Server):
    """Says that it is there once it listens, and ends with status 0 when it is asked to end."""

    def __init__(self, uvicorn_config: uvicorn.Config, messages: list[str], stopping: asyncio.Event) -> None:
        super().__init__(uvicorn_config)
        self._messages = messages
        self.on_started: Callable[[], None] = lambda: None
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.freeze()  # what was made until now stays: no collection needs to look at it
        gc.enable()
        self.on_started()
        for message in self._messages:
            _say(message)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._end, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _end(self, number: int) -> None:
        """A second signal does not wait for open requests."""
        self._stopping.set()
        self.handle_exit(signal.SIGINT if self.should_exit else signal.SIGTERM, None)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def set_up_logging(settings: Settings) -> None:
    """To standard error, in lines for people or in JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else _lines())
    logging.basicConfig(level=settings.root_log_level, handlers=[handler], force=True)
    logging.getLogger("dstack").setLevel(settings.log_level)
    logging.getLogger("uvicorn").setLevel(settings.uvicorn_log_level)


def _lines() -> logging.Formatter:
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    return formatter


class JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "version": dstack.__version__,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)

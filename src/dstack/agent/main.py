"""The agent's process: command line, lock, sockets, signals, end when idle."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from typing import List, Optional

from dstack.agent import health, host, http, leftovers, logs, service, within
from dstack.agent.docker import Docker, DockerError
from dstack.agent.executors.cgroups import Cgroups
from dstack.agent.executors.container import ContainerExecutor
from dstack.agent.executors.process import ProcessExecutor
from dstack.agent.gpu.detect import detect
from dstack.agent.gpu.pool import GpuPool
from dstack.agent.server import Agent
from dstack.agent.tasks import Task, Tasks

EXIT_LOCKED = 3
LOCK_SECONDS = 2
CHECK_SECONDS = 1.0
DEFAULT_LOG_LIMIT_BYTES = 1024**3
_log = logging.getLogger(__name__)


class FolderLocked(Exception):
    """Another agent works in the folder."""


def parse_arguments(arguments: Optional[List[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dstack-agent", description="Runs tasks on this host.")
    parser.add_argument("--dir", required=True, help="folder of the agent: its socket, its journal, its tasks")
    parser.add_argument(
        "--exit-when-idle",
        type=float,
        metavar="SECONDS",
        help="end after so long without tasks, without logs to fetch and without clients",
    )
    parser.add_argument("--docker-socket", default="/var/run/docker.sock", help="default: %(default)s")
    parser.add_argument(
        "--log-limit-bytes",
        type=int,
        default=DEFAULT_LOG_LIMIT_BYTES,
        help="output that a job may have waiting to be fetched before it has to wait (default: %(default)s)",
    )
    parser.add_argument("--socket-user", default="", metavar="NAME", help="gets the agent's socket")
    return parser.parse_args(arguments)


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the agent until SIGTERM or idleness, or does what `service` or `within` do; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["install"], ["uninstall"]):
        return service.main(arguments)
    if arguments[:1] and arguments[0] in within.COMMANDS:
        return within.main(arguments)
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = os.path.abspath(options.dir)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        lock = lock_folder(folder)
    except FolderLocked as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_LOCKED
    except OSError as error:
        sys.stderr.write(f"the agent cannot work in {folder}: {error}\n")
        return 1
    try:
        asyncio.run(_serve(folder, options))
    finally:
        os.close(lock)
    return 0


async def _serve(folder: str, options: argparse.Namespace) -> None:
    await AgentProcess(folder, options).run()  # made within the loop, to which Python 3.8 ties its events


def lock_folder(folder: str) -> int:
    """Keeps other agents out of `folder`. Raises FolderLocked when one is there already."""
    path = os.path.join(folder, "agent.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                pid = os.read(descriptor, 32).decode() or "unknown"
                os.close(descriptor)
                message = "another agent (process {}) works in {}; end it first or use another --dir"
                raise FolderLocked(message.format(pid, folder)) from None
            time.sleep(0.02)  # a killed agent's child may hold it for a moment while it starts
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


class AgentProcess:
    """Everything that runs in the agent's process."""

    def __init__(self, folder: str, options: argparse.Namespace) -> None:
        self.tasks = Tasks(folder)
        gpus, driver = detect()
        self._gpus = gpus
        pool = GpuPool(self.tasks, gpus)
        self.agent = Agent(self.tasks, host.host_facts(folder, gpus, driver))
        self.http = http.HttpServer(self.agent.handle)
        self._folder = folder
        self._notify_path = os.path.join(folder, "notify.sock")
        self.limits = Cgroups(self.agent.agent_id)
        self.agent.limits_error = self.limits.error
        self.processes = ProcessExecutor(self.tasks, pool, self._notify_path, options.log_limit_bytes, self.limits)
        self.agent.add(self.processes)
        docker = self.agent.docker = Docker(options.docker_socket)
        self.containers = ContainerExecutor(self.tasks, pool, docker, self.agent.agent_id)
        self.agent.add(self.containers)
        self._socket_user: str = options.socket_user
        self._exit_when_idle: Optional[float] = options.exit_when_idle
        self._stopping = asyncio.Event()
        self._idle_since: Optional[float] = None
        self._wakeup = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        notifications = http.bind(self._notify_path, socket.SOCK_DGRAM)
        loop.add_reader(notifications, self._notified, notifications)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGCHLD, self.processes.reap)
        self.tasks.on_change = self._changed
        self.agent.resume()
        self.processes.remove_leftovers()
        await self.http.start(os.path.join(self._folder, "agent.sock"), self._socket_user)
        _log.info("the agent serves %s", self._folder)
        if self.limits.error:
            _log.warning("%s", self.limits.error)
        checking = asyncio.ensure_future(self._check())
        cleaning = asyncio.ensure_future(self._remove_leftovers())
        examining = asyncio.ensure_future(self._examine())
        await self._stopping.wait()
        for part in (checking, cleaning, examining):
            part.cancel()
        await self.http.stop()
        for executor in self.agent.executors.values():
            await executor.close()
        loop.remove_reader(notifications)
        notifications.close()

    async def _remove_leftovers(self) -> None:
        looking = asyncio.get_running_loop().run_in_executor
        await looking(None, leftovers.remove, self._folder, lambda id: self.tasks.find(id) is not None)
        try:
            await self.containers.remove_leftovers(leftovers.is_installed(self._folder))
        except DockerError as error:
            _log.info("no look for left containers: %s", error)

    async def _examine(self) -> None:
        """How the host is, now and each minute."""
        loop = asyncio.get_running_loop()
        had_docker = not await self.agent.container_error()
        while True:
            try:
                problems = await loop.run_in_executor(None, health.look, self._folder, self._gpus)
            except OSError as error:
                problems = [health.Problem(health.FAILURE, f"the host cannot be examined: {error}")]
            docker_error = await self.agent.container_error() if had_docker else ""
            if docker_error:
                problems.append(health.Problem(health.WARNING, f"Docker does not answer: {docker_error}"))
            self.agent.health.put(problems)
            await asyncio.sleep(health.CHECK_SECONDS)

    def _notified(self, notifications: socket.socket) -> None:
        for _ in range(64):
            try:
                data = notifications.recv(65536)
            except BlockingIOError:
                return
            self.processes.notified(data)

    def _changed(self, task: Task) -> None:
        self._wakeup.set()

    async def _check(self) -> None:
        """Looks after live tasks once a second; sleeps while there are none."""
        while True:
            self._wakeup.clear()
            for executor in self.agent.executors.values():
                executor.check()
            self.tasks.save_unsaved()
            self._end_if_idle()
            is_waiting = self.tasks.live() or self._exit_when_idle is not None
            if is_waiting:
                await asyncio.sleep(CHECK_SECONDS)
            else:
                await self._wakeup.wait()

    def _end_if_idle(self) -> None:
        if self._exit_when_idle is None:
            return
        if not self._is_idle():
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = now if self._idle_since is None else self._idle_since
        if now - self._idle_since >= self._exit_when_idle:
            self._stopping.set()

    def _is_idle(self) -> bool:
        if self.http.connections or self.tasks.live():
            return False
        for task in self.tasks.list():
            if logs.read_acknowledged(task.log_folder) < logs.bounds(task.log_folder)[1]:
                return False
        return True

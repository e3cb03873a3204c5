"""A simulated cloud: `python -m dstack.agent.simulator --dir DIR`. One process, as many hosts as asked for.

Each host serves the agent protocol for real on `DIR/instances/<name>.sock`, with the `simulated` executor.
The cloud itself is HTTP on `DIR/cloud.sock`:

====== =================== ==========================================================================
PUT    /instances/{name}   body: host facts (`cpus`, `memory_bytes`, `gpus`, …), and `archive_sha256` of the agent
                           that the host is to say it runs; makes the host or finds it; answers
                           `{"name", "socket", "host"}`; 503 with `"code": "no_capacity"`
GET    /instances          `{"instances": [...]}`
GET    /instances/{name}   one of them; 404
DELETE /instances/{name}   204, also when there is none
PUT    /faults             replaces the faults: `no_capacity` (true, or how often), `slow_seconds`,
                           `lose_answer` (how often the host is made and the connection then cut),
                           `vanish` (names of hosts that are gone at once, with their tasks),
                           `unreachable` (names of hosts whose agent does not answer; tasks go on),
                           `unhealthy` (`{name: what is wrong with that host}`)
PUT    /volumes/{id}       body: `{"size_gb"}`; makes the volume or finds it; answers
                           `{"id", "size_gb", "path", "attachments"}`; 503 as for instances
GET    /volumes/{id}       the same; 404 with `"code": "not_found"`
DELETE /volumes/{id}       204, also when there is none; 409 while it is attached
PUT    /volumes/{id}/attachments/{instance}   attaches it; 409 while it is attached to another one
DELETE /volumes/{id}/attachments/{instance}   204, also when there is no such volume or instance
GET    /starts             `{task id: how often it was started}`, of all hosts ever
====== =================== ==========================================================================

Everything but the faults survives a restart of the simulator.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import logging
import os
import resource
import shutil
import signal
import sys
from typing import Any, Dict, List, Optional

from dstack.agent.executors.simulated import SimulatedExecutor
from dstack.agent.files import read_json, remove, write_json
from dstack.agent.health import FAILURE, Problem
from dstack.agent.http import HttpError, HttpServer, Request, Response, json_response
from dstack.agent.main import EXIT_LOCKED, FolderLocked, lock_folder
from dstack.agent.server import Agent, checked_name
from dstack.agent.tasks import Tasks

DEFAULT_HOST = {
    "hostname": "simulated",
    "arch": "x86_64",
    "cpus": 4,
    "memory_bytes": 16 * 1024**3,
    "disk_bytes": 100 * 1024**3,
    "addresses": [],
    "gpus": [],
    "gpu_driver_version": "",
}
FAULTS = {"no_capacity", "slow_seconds", "lose_answer", "vanish", "unreachable", "unhealthy"}
_log = logging.getLogger(__name__)


class SimulatedHost:
    """One host: an agent with the simulated executor."""

    def __init__(self, folder: str, name: str, facts: Dict[str, Any], starts: Starts) -> None:
        self.name = name
        self.folder = folder
        self.socket = folder + ".sock"
        self.facts = facts
        tasks = Tasks(folder, sync=False)
        self._executor = SimulatedExecutor(tasks, starts.add)
        told = {key: value for key, value in facts.items() if key != "archive_sha256"}
        self._agent = Agent(tasks, {**DEFAULT_HOST, "hostname": name, **told})
        self._agent.archive_sha256 = facts.get("archive_sha256", self._agent.archive_sha256)
        self._agent.add(self._executor)
        self._server: Optional[HttpServer] = None

    def resume(self) -> None:
        self._agent.resume()

    async def serve(self) -> None:
        """Answers on its socket."""
        if self._server is None:
            self._server = HttpServer(self._agent.handle)
            await self._server.start(self.socket)

    async def go_silent(self) -> None:
        """Answers no more; its tasks go on."""
        if self._server is not None:
            await self._server.stop()
            self._server = None
        remove(self.socket)

    def suffer(self, problem: Optional[str]) -> None:
        """Has that wrong with it; None: nothing."""
        self._agent.health.put([] if problem is None else [Problem(FAILURE, problem)])

    async def close(self) -> None:
        await self.go_silent()
        await self._executor.close()

    def described(self) -> Dict[str, Any]:
        return {"name": self.name, "socket": self.socket, "host": {**DEFAULT_HOST, **self.facts}}


class Starts:
    """How often each task was started, kept in a file to which each start adds a line."""

    def __init__(self, path: str) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._file = open(path, "a+")  # noqa: SIM115 - open as long as the simulator runs
        self._file.seek(0)
        self.counts.update(line.strip() for line in self._file)

    def add(self, task_id: str) -> None:
        self.counts[task_id] += 1
        self._file.write(task_id + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class SimulatedVolumes:
    """Volumes: folders, with what is known of each in a file beside it."""

    def __init__(self, root: str) -> None:
        self._root = root
        os.makedirs(root, mode=0o700, exist_ok=True)

    def _file(self, id: str) -> str:
        return os.path.join(self._root, id + ".json")

    def has(self, id: str) -> bool:
        return os.path.exists(self._file(id))

    def get(self, id: str) -> Dict[str, Any]:
        known: Optional[Dict[str, Any]] = read_json(self._file(id))
        if known is None:
            raise HttpError(404, f"there is no volume {id}", "not_found")
        return known

    def ensure(self, id: str, body: Dict[str, Any]) -> Dict[str, Any]:
        if not self.has(id):
            path = os.path.join(self._root, id)
            os.makedirs(path, mode=0o700, exist_ok=True)
            write_json(self._file(id), {"id": id, "size_gb": body["size_gb"], "path": path, "attachments": []})
        return self.get(id)

    def delete(self, id: str) -> None:
        if not self.has(id):
            return
        if self.get(id)["attachments"]:
            raise HttpError(409, f"the volume {id} is attached")
        remove(self._file(id))
        shutil.rmtree(os.path.join(self._root, id), ignore_errors=True)

    def attach(self, id: str, instance: str) -> Dict[str, Any]:
        known = self.get(id)
        if set(known["attachments"]) - {instance}:
            raise HttpError(409, f"the volume {id} is attached to another instance", "no_capacity")
        write_json(self._file(id), {**known, "attachments": [instance]})
        return self.get(id)

    def detach(self, id: str, instance: str) -> None:
        if self.has(id):
            known = self.get(id)
            left = [one for one in known["attachments"] if one != instance]
            write_json(self._file(id), {**known, "attachments": left})

    def forget_instance(self, instance: str) -> None:
        for name in os.listdir(self._root):
            if name.endswith(".json"):
                self.detach(name[: -len(".json")], instance)


class SimulatedCloud:
    """All hosts of one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._root = os.path.join(folder, "instances")
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        self._starts = Starts(os.path.join(folder, "starts.log"))
        self._hosts: Dict[str, SimulatedHost] = {}
        self._faults: Dict[str, Any] = {}
        self._volumes = SimulatedVolumes(os.path.join(folder, "volumes"))
        self._server = HttpServer(self.handle)

    async def start(self) -> None:
        """Brings back the hosts of before, then serves."""
        for entry in list(os.scandir(self._root)):
            known = read_json(os.path.join(entry.path, "instance.json")) if entry.is_dir() else None
            if known is not None:
                await self._add(entry.name, known)
        await self._server.start(os.path.join(self._folder, "cloud.sock"))

    async def stop(self) -> None:
        await self._server.stop()
        for host in self._hosts.values():
            await host.close()
        self._starts.close()

    async def _add(self, name: str, facts: Dict[str, Any]) -> SimulatedHost:
        host = SimulatedHost(os.path.join(self._root, name), name, facts, self._starts)
        self._hosts[name] = host
        host.resume()
        await host.serve()
        return host

    async def handle(self, request: Request) -> Response:
        """One call of the simulated cloud's own interface."""
        parts = request.path.strip("/").split("/")
        if parts[0] == "instances" and len(parts) == 2:
            return await self._handle_instance(request, checked_name(parts[1]))
        if parts[0] == "volumes" and len(parts) in (2, 4):
            return await self._handle_volume(request, [checked_name(part) for part in parts[1:]])
        call = (request.method, "/".join(parts))
        if call == ("GET", "instances"):
            return json_response({"instances": [host.described() for host in self._hosts.values()]})
        if call == ("GET", "starts"):
            return json_response(dict(self._starts.counts))
        if call == ("PUT", "faults"):
            return await self._set_faults(await request.json())
        raise HttpError(404, "no such call: {} {}".format(*call))

    async def _handle_instance(self, request: Request, name: str) -> Response:
        if request.method == "PUT":
            return await self._ensure(name, await request.json())
        if request.method == "DELETE":
            await self._remove(name)
            return Response(204)
        if request.method == "GET" and name in self._hosts:
            return json_response(self._hosts[name].described())
        raise HttpError(404, f"there is no instance {name}")

    async def _handle_volume(self, request: Request, parts: List[str]) -> Response:
        await asyncio.sleep(float(self._faults.get("slow_seconds", 0)))
        if request.method == "PUT" and len(parts) == 1:
            if not self._volumes.has(parts[0]) and self._strikes("no_capacity"):
                raise HttpError(503, "there is no such volume to be had now", "no_capacity")
            made = self._volumes.ensure(parts[0], await request.json())
        elif request.method == "PUT":
            if parts[2] not in self._hosts:
                raise HttpError(404, f"there is no instance {parts[2]}", "not_found")
            made = self._volumes.attach(parts[0], parts[2])
        elif request.method == "DELETE":
            self._volumes.delete(parts[0]) if len(parts) == 1 else self._volumes.detach(parts[0], parts[2])
            return Response(204)
        else:
            made = self._volumes.get(parts[0])
        if self._strikes("lose_answer"):
            raise ConnectionError("the answer is lost, as asked for")
        return json_response(made)

    async def _ensure(self, name: str, facts: Dict[str, Any]) -> Response:
        await asyncio.sleep(float(self._faults.get("slow_seconds", 0)))
        host = self._hosts.get(name)
        if host is None:
            if self._strikes("no_capacity"):
                raise HttpError(503, "there is no such instance to be had now", "no_capacity")
            folder = os.path.join(self._root, name)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            write_json(os.path.join(folder, "instance.json"), facts)
            host = await self._add(name, facts)
        if self._strikes("lose_answer"):
            raise ConnectionError("the answer is lost, as asked for")
        return json_response(host.described())

    def _strikes(self, fault: str) -> bool:
        """Whether the fault is on; a number counts down."""
        left = self._faults.get(fault, 0)
        if left and left is not True:
            self._faults[fault] = left - 1
        return bool(left)

    async def _remove(self, name: str) -> None:
        host = self._hosts.pop(name, None)
        if host is not None:
            await host.close()
            self._volumes.forget_instance(name)
            remove(os.path.join(host.folder, "instance.json"))
            shutil.rmtree(host.folder, ignore_errors=True)

    async def _set_faults(self, faults: Dict[str, Any]) -> Response:
        unknown = set(faults) - FAULTS
        if unknown:
            raise HttpError(400, "unknown faults: {}".format(", ".join(sorted(unknown))))
        self._faults = faults
        for name in faults.get("vanish", []):
            await self._remove(name)
        for name, host in self._hosts.items():
            host.suffer(faults.get("unhealthy", {}).get(name))
            await (host.go_silent() if name in faults.get("unreachable", []) else host.serve())
        return json_response(faults)


async def _serve(folder: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    cloud = SimulatedCloud(folder)
    await cloud.start()
    _log.info("the simulated cloud serves %s", folder)
    await stopping.wait()
    await cloud.stop()


def _allow_many_sockets() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the simulated cloud until SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="dstack-simulator", description="Serves a simulated cloud.")
    parser.add_argument("--dir", required=True, help="folder of its socket and its hosts")
    folder = os.path.abspath(parser.parse_args(arguments).dir)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        lock = lock_folder(folder)
    except FolderLocked as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_LOCKED
    _allow_many_sockets()
    try:
        asyncio.run(_serve(folder))
    finally:
        os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())

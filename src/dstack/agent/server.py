"""The calls of the protocol, over the tasks and executors of one agent folder."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import sys
import time
import uuid
import zipfile
from typing import Any, AsyncIterator, Dict, List, Optional

from dstack import __version__
from dstack.agent import logs, service
from dstack.agent.docker import Docker, DockerError
from dstack.agent.executors.base import Executor
from dstack.agent.files import read_json, remove, write_json
from dstack.agent.health import HealthState
from dstack.agent.http import HttpError, Request, Response, json_response
from dstack.agent.protocol import (
    ENDED,
    PENDING,
    PROTOCOL_VERSION,
    RUNNING,
    AgentInfo,
    ConnectRequest,
    Event,
    ExecRequest,
    StopRequest,
    TaskSpec,
)
from dstack.agent.sessions import Connection, Session, SessionRefused
from dstack.agent.streams import Stream
from dstack.agent.tasks import Task, TaskConflict, Tasks
from dstack.agent.usage import NotRunning

PING_SECONDS = 15
MAX_FILE_BYTES = 2 * 1024**3
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Agent:
    """Binds the protocol to tasks and executors. `host` is what `AgentInfo.host` tells."""

    def __init__(self, tasks: Tasks, host: Dict[str, Any]) -> None:
        self.tasks = tasks
        self.executors: Dict[str, Executor] = {}
        self.host = host
        self.docker: Optional[Docker] = None
        self.limits_error = ""
        self.health = HealthState(tasks.rouse)
        self.agent_id = _agent_id(tasks.folder)
        self.archive_sha256 = service.digest_of(sys.argv[0]) if zipfile.is_zipfile(sys.argv[0]) else ""

    def add(self, executor: Executor) -> None:
        self.executors[executor.name] = executor

    def resume(self) -> None:
        """Takes over every task that lived when the last agent ended."""
        for task in self.tasks.live():
            self._adopt_uploads(task)
            self._executor(task).ensure(task)

    def _executor(self, task: Task) -> Executor:
        assert task.spec
        return self.executors[task.spec.executor]

    async def handle(self, request: Request) -> Response:
        """One call of the protocol."""
        parts = request.path.strip("/").split("/")
        if parts[:1] != ["v1"] or len(parts) < 2:
            raise HttpError(404, f"no such path: {request.path}")
        if parts[1] == "tasks" and len(parts) > 2:
            return await self._handle_task(request, checked_name(parts[2]), parts[3:])
        calls = {"tasks": self._list, "events": self._events}
        if len(parts) != 2 or parts[1] not in (*calls, "info"):
            raise HttpError(404, f"no such path: {request.path}")
        if request.method != "GET":
            raise HttpError(405, f"{request.method} cannot be used on {request.path}")
        return await self._info() if parts[1] == "info" else calls[parts[1]](request)

    async def _handle_task(self, request: Request, task_id: str, rest: List[str]) -> Response:
        call = (request.method, "/".join(rest))
        if call == ("PUT", ""):
            return await self._put(task_id, await request.json())
        if call == ("GET", ""):
            return json_response(self._find(task_id).full_state().to_json())
        if call == ("DELETE", ""):
            return await self._delete(task_id)
        if call == ("POST", "stop"):
            return self._stop(task_id, await request.json())
        if call == ("GET", "metrics"):
            return await self._metrics(self._find(task_id))
        if call in (("POST", "exec"), ("POST", "connect")):
            return await self._upgrade(self._find(task_id), rest[0], request)
        if call == ("GET", "logs"):
            return self._logs(task_id, request)
        if call == ("POST", "logs/acknowledge"):
            return self._acknowledge(task_id, await request.json())
        if request.method == "PUT" and len(rest) == 2 and rest[0] == "files":
            return await self._put_file(task_id, checked_name(rest[1]), request)
        raise HttpError(404, f"no such call: {request.method} {request.path}")

    def _find(self, task_id: str) -> Task:
        task = self.tasks.find(task_id)
        if task is None:
            raise HttpError(404, f"there is no task {task_id} on this host")
        return task

    async def container_error(self) -> str:
        """Why containers cannot be run now; empty when they can."""
        if self.docker is None:
            return "" if "container" in self.executors else "this agent runs no containers"
        try:
            await self.docker.negotiate()
        except DockerError as error:
            return str(error)
        return ""

    async def _info(self) -> Response:
        container_error = await self.container_error()
        info = AgentInfo(
            agent_version=__version__,
            protocol=PROTOCOL_VERSION,
            agent_id=self.agent_id,
            pid=os.getpid(),
            seq=self.tasks.seq,
            executors=sorted(name for name in self.executors if name != "container" or not container_error),
            container_error=container_error,
            limits_error=self.limits_error,
            archive_sha256=self.archive_sha256,
            clock=time.time(),
            host=self.host,
        )
        return json_response(info.to_json())

    def _list(self, request: Request) -> Response:
        return json_response({"tasks": [task.full_state().to_json() for task in self.tasks.list()]})

    async def _put(self, task_id: str, data: Dict[str, Any]) -> Response:
        try:
            spec = TaskSpec.from_json({**data, "id": data.get("id", task_id)})
        except TypeError as error:
            raise HttpError(400, f"the task is malformed: {error}") from error
        if spec.id != task_id:
            raise HttpError(400, f"the path names task {task_id}, the body {spec.id}")
        if self.tasks.find(task_id) is None:
            await self._check_executor(spec)
        task = self.tasks.find(task_id)  # looked for after all waiting
        if task is None:
            task = self._create(spec)
        elif task.spec is not None and task.spec != spec:
            raise HttpError(409, f"task {task_id} exists with another specification")
        elif task.state.status == PENDING:  # it was written down, but its start failed, say on a full disk
            self._adopt_uploads(task)
            self._executor(task).ensure(task)
        return json_response(task.full_state().to_json())

    async def _check_executor(self, spec: TaskSpec) -> None:
        if spec.executor == "container":
            error = await self.container_error()
            if error:
                raise HttpError(400, f"the image {spec.image} cannot be run: {error}")
        elif spec.executor not in self.executors:
            known = ", ".join(sorted(self.executors))
            raise HttpError(400, f"this agent has no executor {spec.executor!r}; it has {known}")

    def _create(self, spec: TaskSpec) -> Task:
        task = self.tasks.create(spec.id, spec)
        self._adopt_uploads(task)
        self._executor(task).ensure(task)
        return task

    def _adopt_uploads(self, task: Task) -> None:
        """Puts what was uploaded for the task into its folder."""
        uploads = self._uploads(task.id)
        if os.path.isdir(uploads):
            os.rename(uploads, task.path("files"))

    def _uploads(self, task_id: str) -> str:
        return os.path.join(self.tasks.folder, "uploads", task_id)

    def _stop(self, task_id: str, data: Dict[str, Any]) -> Response:
        try:
            stop = StopRequest.from_json(data)
        except TypeError as error:
            raise HttpError(400, f"the stop request is malformed: {error}") from error
        task = self.tasks.find(task_id)
        if task is None:
            task = self.tasks.create(task_id, None, stop)
            shutil.rmtree(self._uploads(task_id), ignore_errors=True)
        elif task.is_live:
            self.tasks.request_stop(task, stop)
            self._executor(task).stop(task)
        return json_response(task.full_state().to_json())

    async def _delete(self, task_id: str) -> Response:
        task = self.tasks.find(task_id)
        if task is not None:
            if task.is_live:
                raise HttpError(409, f"the task is {task.state.status}; stop it first")
            if task.spec and task.spec.executor in self.executors:
                await self._executor(task).forget(task)
            if self.tasks.find(task_id) is task:
                self._forget(task)
        shutil.rmtree(self._uploads(task_id), ignore_errors=True)
        return Response(204)

    def _forget(self, task: Task) -> None:
        try:
            self.tasks.delete(task)
        except TaskConflict as error:
            raise HttpError(409, str(error)) from error

    def _acknowledge(self, task_id: str, data: Dict[str, Any]) -> Response:
        task = self._find(task_id)
        offset = data.get("offset")
        if not isinstance(offset, int) or offset < 0:
            raise HttpError(400, "`offset` has to be a number of bytes")
        try:
            logs.acknowledge(task.log_folder, offset, writing=task.is_live)
        except FileNotFoundError as error:
            if offset:
                raise HttpError(400, "the task has no log yet") from error
        except logs.OffsetError as error:
            raise HttpError(400, str(error)) from error
        if task.is_live:
            self._executor(task).acknowledged(task)
        self.tasks.on_change(task)
        return json_response(task.full_state().to_json())

    async def _put_file(self, task_id: str, name: str, request: Request) -> Response:
        if self.tasks.find(task_id) is not None:
            raise HttpError(409, f"files have to be uploaded before the task {task_id} is put")
        folder = self._uploads(task_id)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
        try:
            await _receive(request, temporary)
            os.replace(temporary, os.path.join(folder, name))
        finally:
            remove(temporary)
        return Response(204)

    async def _metrics(self, task: Task) -> Response:
        if task.state.status != RUNNING:
            raise HttpError(409, f"the task is {task.state.status}: only a running one is measured")
        try:
            return json_response((await self._executor(task).measure(task)).to_json())
        except (NotRunning, DockerError) as error:
            raise HttpError(409, f"the task cannot be measured now: {error}") from error

    async def _upgrade(self, task: Task, call: str, request: Request) -> Response:
        request.check_upgrade()
        data = await request.json()
        if task.state.status != RUNNING:
            raise HttpError(409, f"the task is {task.state.status}: only a running one can be entered")
        executor = self._executor(task)
        try:
            if call == "exec":
                return Response(101, upgraded=Session(await executor.exec(task, _exec_request(data))))
            connected = await executor.connect(task, ConnectRequest.from_json(data))
            return Response(101, upgraded=Connection(Stream.of_socket(connected)))
        except SessionRefused as error:
            raise HttpError(error.status, str(error)) from error
        except DockerError as error:
            raise HttpError(409, f"the task cannot be entered now: {error}") from error

    def _logs(self, task_id: str, request: Request) -> Response:
        task = self._find(task_id)
        offset, follow = _number(request, "offset"), request.query.get("follow") == "1"
        try:
            reader = logs.LogReader(task.log_folder, offset)
        except logs.OffsetError as error:
            raise HttpError(410 if offset < logs.bounds(task.log_folder)[0] else 400, str(error)) from error
        return Response(body=_log_frames(task, reader, follow), content_type="application/octet-stream")

    def _events(self, request: Request) -> Response:
        after = _number(request, "after")
        return Response(body=self._event_lines(after), content_type="application/x-ndjson")

    async def _event_lines(self, after: int) -> AsyncIterator[bytes]:
        waiter = self.tasks.subscribe()
        told_health: Dict[str, Any] = {}
        try:
            while True:
                waiter.clear()
                if self.health.current != told_health:
                    told_health = self.health.current
                    yield _line(Event("health", self.tasks.seq, health=told_health))
                for seq, task in self.tasks.changed_after(after):
                    after = seq
                    if task.state.seq == seq:  # else it has changed meanwhile, and the next round tells of it
                        yield _line(Event("task", seq, task.full_state().to_json()))
                if not waiter.is_set() and not await _is_set(waiter, PING_SECONDS):
                    yield _line(Event("ping", self.tasks.seq))
        finally:
            self.tasks.unsubscribe(waiter)


async def _is_set(waiter: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(waiter.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


async def _log_frames(task: Task, reader: logs.LogReader, follow: bool) -> AsyncIterator[bytes]:
    try:
        while True:
            change, ended = task.next_change(), task.state.status == ENDED
            data = reader.read()
            if data:
                yield data
            elif ended or not follow:
                return
            else:
                await change
    finally:
        reader.close()


async def _receive(request: Request, path: str) -> None:
    size = 0
    with open(path, "wb") as file:  # noqa: ASYNC230 - a local file, written in pieces between which others run
        async for chunk in request.chunks():
            size += len(chunk)
            if size > MAX_FILE_BYTES:
                raise HttpError(413, f"the file is larger than {MAX_FILE_BYTES} bytes")
            file.write(chunk)


def _exec_request(data: Dict[str, Any]) -> ExecRequest:
    """Raises HttpError 400 for what does not have the types that it should have."""
    request = ExecRequest.from_json(data)
    known = (("command", str), ("terminal", dict), ("user", str))
    wrong = [name for name, kind in known if not isinstance(getattr(request, name), (kind, type(None)))]
    if not isinstance(request.env, dict) or not all(isinstance(value, str) for value in request.env.values()):
        wrong.append("env")
    if wrong:
        raise HttpError(400, f"the exec request is malformed: {', '.join(wrong)}")
    return request


def _line(event: Event) -> bytes:
    return json.dumps(dataclasses.asdict(event), separators=(",", ":")).encode() + b"\n"


def _number(request: Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not text.isdigit():
        raise HttpError(400, f"`{name}` has to be a number, not {text!r}")
    return int(text)


def checked_name(name: str) -> str:
    """A name that may be part of a path. Raises HttpError 400."""
    if not _NAME.fullmatch(name):
        raise HttpError(400, f"{name!r} is not a valid name: letters, digits, `-`, `_` and `.`")
    return name


def _agent_id(folder: str) -> str:
    path = os.path.join(folder, "agent.json")
    known = read_json(path)
    if known is None:
        known = {"agent_id": str(uuid.uuid4())}
        write_json(path, known, sync=True)
    return str(known["agent_id"])

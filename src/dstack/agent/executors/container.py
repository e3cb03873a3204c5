"""Runs tasks as Docker containers. A container is found again by its label, so it is never made twice."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from dstack.agent import processes, reach, usage, within
from dstack.agent.docker import START_SECONDS, Docker, DockerError, DockerUnreachable
from dstack.agent.executors import container_exec, container_nodes, helper
from dstack.agent.executors.cgroups import memory_message
from dstack.agent.executors.container_delivery import DeliveryError, deliver
from dstack.agent.executors.container_log import ContainerLog, microseconds
from dstack.agent.executors.container_spec import (
    AGENT_LABEL,
    FOLDER_LABEL,
    TASK_LABEL,
    SpecError,
    container_config,
    container_name,
    published_ports,
)
from dstack.agent.gpu.pool import GpuPool, GpusTaken
from dstack.agent.protocol import (
    CREATING,
    CREATING_FAILED,
    DONE,
    EXECUTOR_ERROR,
    EXITED_WITH_ERROR,
    MAX_DURATION_EXCEEDED,
    PORTS_BINDING_FAILED,
    PREPARING,
    PULLING,
    RUNNING,
    ConnectRequest,
    ExecRequest,
    TaskMetrics,
    TaskSpec,
)
from dstack.agent.sessions import Program, SessionRefused
from dstack.agent.tasks import Task, Tasks

RETRY_SECONDS = 1.0
PROGRESS_SECONDS = 0.5
_log = logging.getLogger(__name__)


class ContainerExecutor:
    """`docker` has been negotiated with."""

    name = "container"

    def __init__(self, tasks: Tasks, gpus: GpuPool, docker: Docker, agent_id: str) -> None:
        self._tasks = tasks
        self._gpus = gpus
        self._docker = docker
        self._agent_id = agent_id
        self._labels = {AGENT_LABEL: agent_id, FOLDER_LABEL: tasks.folder}
        self._flows: Dict[str, asyncio.Task[None]] = {}
        self._stops: Dict[str, asyncio.Event] = {}
        self._known: Dict[str, Dict[str, Any]] = {}
        self._overdue: Set[str] = set()
        """Tasks that are ended because they have run for as long as they may."""
        self._out_of_sight: Set[str] = set()
        """Tasks that ran when Docker stopped answering, until it tells that their containers still run."""
        self._helpers: Dict[str, List[helper.HelperProgram]] = {}

    def ensure(self, task: Task) -> None:
        if task.id not in self._flows:
            self._stops[task.id] = asyncio.Event()
            if task.stop:
                self._stops[task.id].set()
            flow = asyncio.ensure_future(self._run(task))
            self._flows[task.id] = flow
            flow.add_done_callback(lambda done: self._flow_ended(task, done))

    def _flow_ended(self, task: Task, flow: asyncio.Task[None]) -> None:
        self._flows.pop(task.id, None)
        if not task.is_live:
            for serving in self._helpers.pop(task.id, []):
                serving.end()
        if not flow.cancelled() and flow.exception():  # the next `check` begins anew
            _log.error("looking after task %s failed", task.id, exc_info=flow.exception())

    def stop(self, task: Task) -> None:
        self.ensure(task)
        self._stops[task.id].set()

    async def forget(self, task: Task) -> None:
        self._stops.pop(task.id, None)
        self._known.pop(task.id, None)
        self._overdue.discard(task.id)
        self._out_of_sight.discard(task.id)
        try:
            await self._remove(task)
        except DockerUnreachable as error:  # what it leaves is removed by `remove_leftovers`
            _log.warning("the container of task %s stays for now: %s", task.id, error)

    def acknowledged(self, task: Task) -> None:
        return

    async def measure(self, task: Task) -> TaskMetrics:
        gpus = await self._gpus.measure(task.state.gpu_ids)
        for container in await self._list(f"{TASK_LABEL}={task.id}"):
            query = {"stream": 0, "one-shot": 1}
            stats = await self._docker.call("GET", "/containers/{}/stats".format(container["Id"]), query)
            return usage.as_metrics(usage.parse_docker_stats(stats), gpus)
        raise usage.NotRunning("the container of the task is gone")

    async def exec(self, task: Task, request: ExecRequest) -> Program:
        found = await self._running_container(task)
        if request.sftp and _may_enter(found):
            serving = await helper.start(within.command("sftp", *_inside(found, request.user)))
            others = [other for other in self._helpers.get(task.id, []) if other.is_running]
            self._helpers[task.id] = [*others, serving]
            return serving
        return await container_exec.start(self._docker, found["Id"], request, self._agent_id)

    async def connect(self, task: Task, request: ConnectRequest) -> socket.socket:
        assert task.spec
        found = await self._running_container(task)
        if request.socket:
            if not _may_enter(found):
                raise SessionRefused(
                    400, "sockets of a container can be reached by an agent that runs as root only"
                )
            return await helper.dial(_inside(found, None), request.socket)
        port = reach.checked_port(request.port)
        if task.spec.network_mode == "host":
            return await reach.connect_port(port)
        if _may_enter(found):
            try:
                return await reach.connect_port(port, reach.sockets_of(int(found["State"]["Pid"])))
            except FileNotFoundError as error:
                raise SessionRefused(409, "the container of the task has ended") from error
        return await reach.connect_port(port, addresses=container_addresses(found["NetworkSettings"]))

    async def _running_container(self, task: Task) -> Dict[str, Any]:
        """What Docker tells of it; it is asked once, as nothing that is used of it changes while the task runs."""
        known = self._known.get(task.id)
        if known is None:
            found = await self._find(task)
            if found is None or not found["State"]["Running"]:
                raise SessionRefused(409, "the container of the task does not run")
            known = self._known[task.id] = found
        return known

    def check(self) -> None:
        for task in self._tasks.live():
            if task.spec and task.spec.executor == self.name:
                self.ensure(task)

    async def close(self) -> None:
        flows = list(self._flows.values())
        for flow in flows:
            flow.cancel()
        await asyncio.gather(*flows, return_exceptions=True)

    async def remove_leftovers(self, has_host: bool) -> None:
        """Removes containers of this agent whose task is not known any more.

        One that `has_host`, with its Docker, for itself: also those of an agent that was in its folder before.
        """
        for label in (AGENT_LABEL, FOLDER_LABEL) if has_host else (AGENT_LABEL,):
            for container in await self._list(f"{label}={self._labels[label]}"):
                if self._tasks.find(container["Labels"].get(TASK_LABEL, "")) is None:
                    await self._delete(container["Id"])

    async def _run(self, task: Task) -> None:
        """The whole life of a task; begins where an agent before this one stopped."""
        while task.is_live:
            try:
                await self._run_once(task)
            except DockerUnreachable as error:
                if task.state.status != RUNNING:
                    self._tasks.end(task, CREATING_FAILED, str(error))
                    return
                self._out_of_sight.add(task.id)
                if task.state.message != str(error):
                    self._tasks.update(task, message=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except DeliveryError as error:
                await self._try_remove(task)
                self._tasks.end(task, error.reason, str(error))
            except (DockerError, SpecError, GpusTaken) as error:
                await self._failed(task, str(error))
            except OSError as error:
                await self._failed(task, f"the agent cannot write what the task needs: {error}")

    async def _failed(self, task: Task, message: str) -> None:
        reason = EXECUTOR_ERROR if task.state.status == RUNNING else CREATING_FAILED
        if "port is already allocated" in message or "address already in use" in message:
            reason = PORTS_BINDING_FAILED
        await self._try_remove(task)
        self._tasks.end(task, reason, explain_start(message))

    async def _run_once(self, task: Task) -> None:
        found = await self._find(task)
        if found is None and task.state.status == RUNNING:
            self._tasks.end(task, EXECUTOR_ERROR, "the container was removed by somebody else while it ran")
            return
        if found is None or found["State"]["Status"] == "created":
            found = await self._start_unless_stopped(task)
            if found is None:
                await self._try_remove(task)
                assert task.stop
                self._tasks.end(task, task.stop.reason, task.stop.message)
                return
        if task.state.status == RUNNING:
            await container_exec.hang_up_leftovers(self._docker, found, self._agent_id)
        elif task.spec and task.spec.ssh:
            await container_nodes.let_in(self._docker, task, found["Id"], self._agent_id)
        if found["State"]["Running"]:
            self._out_of_sight.discard(task.id)
        self._running(task, found)
        await self._follow(task, found)

    async def _start_unless_stopped(self, task: Task) -> Optional[Dict[str, Any]]:
        """The started container; None when the task was to be stopped before."""
        starting = asyncio.ensure_future(self._start(task))
        stopping = asyncio.ensure_future(self._stops[task.id].wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return starting.result() if starting.done() else None
        finally:
            stopping.cancel()
            starting.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def _start(self, task: Task) -> Dict[str, Any]:
        assert task.spec
        spec = task.spec
        if not spec.image:
            raise SpecError("the task names no image")
        self._tasks.update(task, status=PREPARING, gpu_ids=self._gpus.choose(task, spec))
        if not await self._has_image(spec.image):
            await self._pull(task, spec)
        self._tasks.update(task, status=CREATING, pull_progress=None)
        container = await self._create(task, spec)
        await deliver(self._docker, task, container)
        await self._docker.call("POST", f"/containers/{container}/start", seconds=START_SECONDS)
        return await self._inspect(container)

    async def _has_image(self, image: str) -> bool:
        try:
            await self._docker.call("GET", f"/images/{image}/json")
        except DockerError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _pull(self, task: Task, spec: TaskSpec) -> None:
        assert spec.image
        progress, told = PullProgress(), 0.0
        self._tasks.update(task, status=PULLING, pull_progress=progress.told())
        async for message in self._docker.pull(spec.image, spec.registry_username, spec.registry_password):
            progress.add(message)
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                self._tasks.update(task, pull_progress=progress.told())

    async def _create(self, task: Task, spec: TaskSpec) -> str:
        """Makes the container, or finds the one that was made before."""
        found = await self._find(task)
        if found is not None:
            return str(found["Id"])
        config = container_config(spec, self._labels, self._gpus.of(task.state.gpu_ids))
        name = container_name(spec)
        made = await self._docker.call("POST", "/containers/create", {"name": name}, config, seconds=START_SECONDS)
        return str(made["Id"])

    def _running(self, task: Task, found: Dict[str, Any]) -> None:
        assert task.spec
        if task.state.status == RUNNING:
            return
        self._tasks.update(
            task,
            status=RUNNING,
            message="",
            started_at=microseconds(found["State"]["StartedAt"].encode()) / 1e6,
            ports=published_ports(task.spec, found["NetworkSettings"]),
            working_dir=found["Config"]["WorkingDir"] or "/",
            username=found["Config"]["User"] or "root",
        )

    async def _follow(self, task: Task, found: Dict[str, Any]) -> None:
        """Until the container has ended and its output is written."""
        container = found["Id"]
        pumping = asyncio.ensure_future(self._read_log(task, container, follow=True))
        stopping = asyncio.ensure_future(self._stop_in_time(task, container, _seconds_left(task, found)))
        try:
            await self._docker.call("POST", f"/containers/{container}/wait", seconds=None)
            await pumping
            await self._read_log(task, container, follow=False)  # following may miss the last of it
            found = await self._inspect(container)
            reason, message, status = _ending(task, found["State"], is_overdue=task.id in self._overdue)
            if reason == EXITED_WITH_ERROR and not message and task.id in self._out_of_sight:
                message = "Docker was stopped or restarted on the host, and the container ended with it"
            self._tasks.end(task, reason, message, status)
        finally:
            for part in (pumping, stopping):
                part.cancel()
            await asyncio.gather(pumping, stopping, return_exceptions=True)

    async def _read_log(self, task: Task, container: str, follow: bool) -> None:
        log = ContainerLog(task.folder)
        try:
            query = {"follow": int(follow), "stdout": 1, "stderr": 1, "timestamps": 1, "since": log.since}
            async for data in self._docker.stream("GET", f"/containers/{container}/logs", query):
                log.feed(data)
                await self._write(task, log)
            if not follow:
                log.finish()
            await self._write(task, log)
        finally:
            log.close()

    async def _write(self, task: Task, log: ContainerLog) -> None:
        while True:
            try:
                if log.write():
                    task.wake()
                return
            except OSError as error:
                if task.state.message != str(error):
                    self._tasks.update(task, message=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _stop_in_time(self, task: Task, container: str, left: Optional[float]) -> None:
        """Interrupts the container when it has to stop or its time is over, and kills it after the grace."""
        assert task.spec
        try:
            await asyncio.wait_for(self._stops[task.id].wait(), left)
        except asyncio.TimeoutError:
            _log.info("task %s has run for %s s, its limit", task.id, task.spec.max_duration_seconds)
            self._overdue.add(task.id)
        grace = task.spec.stop_grace_seconds
        if task.stop and task.stop.grace_seconds is not None:
            grace = task.stop.grace_seconds
        if grace > 0:
            await self._kill(container, "SIGINT")
            await asyncio.sleep(grace)
        while True:
            await self._kill(container, "SIGKILL")
            await asyncio.sleep(RETRY_SECONDS)

    async def _kill(self, container: str, number: str) -> None:
        try:
            await self._docker.call("POST", f"/containers/{container}/kill", {"signal": number})
        except DockerError as error:
            if error.status not in (404, 409):  # gone, or not running any more: what we wanted
                raise

    async def _find(self, task: Task) -> Optional[Dict[str, Any]]:
        """What Docker tells of the task's container."""
        for container in await self._list(f"{TASK_LABEL}={task.id}"):
            return await self._inspect(container["Id"])
        return None

    async def _list(self, label: str) -> List[Dict[str, Any]]:
        filters = json.dumps({"label": [label]})
        return list(await self._docker.call("GET", "/containers/json", {"all": 1, "filters": filters}))

    async def _inspect(self, container: str) -> Dict[str, Any]:
        return dict(await self._docker.call("GET", f"/containers/{container}/json"))

    async def _remove(self, task: Task) -> None:
        for container in await self._list(f"{TASK_LABEL}={task.id}"):
            await self._delete(container["Id"])

    async def _try_remove(self, task: Task) -> None:
        try:
            await self._remove(task)
        except DockerError as error:
            _log.warning("the container of task %s stays for now: %s", task.id, error)

    async def _delete(self, container: str) -> None:
        try:
            await self._docker.call("DELETE", f"/containers/{container}", {"force": 1, "v": 1})
        except DockerError as error:
            if error.status not in (404, 409):  # gone, or being removed
                raise


def _seconds_left(task: Task, found: Dict[str, Any]) -> Optional[float]:
    """How long a container may still run; None: as long as it likes, or it has ended.

    By the host's clock, which may be set at any time, only where there is nothing else.
    """
    assert task.spec
    limit, pid = task.spec.max_duration_seconds, int(found["State"]["Pid"])
    if limit is None or not found["State"]["Running"]:
        return None
    ran = processes.ran_seconds(pid) if processes.is_in_container(pid, found["Id"]) else None
    if ran is None:
        ran = time.time() - (task.state.started_at or time.time())
    return max(0.0, limit - ran)


def _ending(task: Task, state: Dict[str, Any], *, is_overdue: bool) -> Tuple[str, str, int]:
    """(reason, message, exit status) of a container that has ended. `is_overdue`: this agent has ended it."""
    assert task.spec
    status, limit = int(state["ExitCode"]), task.spec.max_duration_seconds
    if task.stop:
        return task.stop.reason, task.stop.message, status
    ran_seconds = (microseconds(state["FinishedAt"].encode()) - microseconds(state["StartedAt"].encode())) / 1e6
    if status and (is_overdue or (limit is not None and ran_seconds >= limit)):
        return MAX_DURATION_EXCEEDED, f"the job ran for {limit} s, its limit", status
    if state.get("OOMKilled") and status:
        return EXITED_WITH_ERROR, memory_message(task.spec.memory_bytes), status
    return (EXITED_WITH_ERROR if status else DONE), str(state.get("Error", "")), status


def _may_enter(found: Dict[str, Any]) -> bool:
    """Whether its files and network can be entered: the agent is root, and sees processes as Docker does."""
    return os.geteuid() == 0 and processes.is_in_container(int(found["State"]["Pid"]), found["Id"])


def _inside(found: Dict[str, Any], user: Optional[str]) -> List[str]:
    """The options of `within` for a container."""
    config = found["Config"]
    who = user or config["User"] or "0"
    return ["--pid", str(found["State"]["Pid"]), "--user", who, "--dir", config["WorkingDir"] or "/"]


def container_addresses(network: Dict[str, Any]) -> List[Tuple[int, str]]:
    """Where a container can be reached from its host, as Docker tells it; empty without a network."""
    found = [(socket.AF_INET, one["IPAddress"]) for one in (network.get("Networks") or {}).values()]
    return [(family, address) for family, address in found if address]


class PullProgress:
    """Sums Docker's progress messages over the layers of an image."""

    def __init__(self) -> None:
        self._downloaded: Dict[str, int] = {}
        self._extracted: Dict[str, int] = {}
        self._totals: Dict[str, int] = {}
        self._layers: Dict[str, bool] = {}

    def add(self, message: Dict[str, Any]) -> None:
        layer, status = str(message.get("id", "")), message.get("status")
        detail = message.get("progressDetail") or {}
        current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
        if status == "Pulling fs layer":
            self._layers[layer] = False
        elif status == "Downloading":
            self._downloaded[layer] = current
            self._total(layer, total)
        elif status in ("Verifying Checksum", "Download complete"):
            self._downloaded[layer] = self._totals.get(layer, self._downloaded.get(layer, 0))
            self._layers[layer] = True
        elif status == "Extracting":
            self._extracted[layer] = current
            self._total(layer, total)
        elif status == "Pull complete":
            self._extracted[layer] = self._totals.get(layer, 0)
            self._layers[layer] = True

    def _total(self, layer: str, total: int) -> None:
        if total > 0:
            self._totals[layer] = total
            self._layers[layer] = True

    def told(self) -> Dict[str, Any]:
        """`TaskState.pull_progress`."""
        return {
            "downloaded_bytes": sum(self._downloaded.values()),
            "extracted_bytes": sum(self._extracted.values()),
            "total_bytes": sum(self._totals.values()),
            "is_total_bytes_final": bool(self._layers) and all(self._layers.values()),
        }


def explain_start(message: str) -> str:
    """Docker's words on a container that does not start, in ours."""
    if "could not select device driver" in message:
        return f"Docker cannot give GPUs to containers: install the vendor's container toolkit ({message})"
    if "unknown or invalid runtime" in message or "unknown runtime specified" in message:
        return f"Docker lacks the runtime that was asked for ({message})"
    return message

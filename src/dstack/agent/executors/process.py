"""Runs tasks as processes, each under a supervisor that outlives the agent (see `supervisor`)."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
from typing import Dict, Optional, Tuple

from dstack.agent import logs, processes, reach, usage, within
from dstack.agent.executors import cgroups, equipment, helper, job, ports, supervisor
from dstack.agent.executors.process_exec import ProcessProgram, shell_command, start
from dstack.agent.files import read_json, write_json
from dstack.agent.gpu.pool import GpuPool, GpusTaken
from dstack.agent.protocol import (
    DONE,
    EXECUTOR_ERROR,
    EXITED_WITH_ERROR,
    MAX_DURATION_EXCEEDED,
    PREPARING,
    RUNNING,
    STOPPED,
    ConnectRequest,
    ExecRequest,
    TaskMetrics,
)
from dstack.agent.sessions import SessionRefused
from dstack.agent.tasks import Task, Tasks

GROUPS_SECONDS = 0.2
_log = logging.getLogger(__name__)


class ProcessExecutor:
    """`notify_path`: the datagram socket on which supervisors tell of changes; `limits`: the tasks' groups."""

    name = "process"

    def __init__(
        self, tasks: Tasks, gpus: GpuPool, notify_path: str, log_limit_bytes: int, limits: cgroups.Cgroups
    ) -> None:
        self._tasks = tasks
        self._gpus = gpus
        self._notify_path = notify_path
        self._log_limit_bytes = log_limit_bytes
        self._limits = limits
        self._children: Dict[int, Task] = {}

    def ensure(self, task: Task) -> None:
        if self._finish_if_ended(task):
            return
        lock = _take_lock(task)
        if lock is None:
            self._take_over(task)
            return
        try:
            if self._finish_if_ended(task):
                return
            if os.path.exists(task.path("supervisor.json")):
                self._supervisor_died(task)
            elif task.stop:
                self._tasks.end(task, task.stop.reason, task.stop.message)
            else:
                self._start(task, lock)
        finally:
            os.close(lock)

    def _start(self, task: Task, lock: int) -> None:
        assert task.spec
        try:
            gpu_ids = self._gpus.choose(task, task.spec)
        except GpusTaken as error:
            self._tasks.end(task, EXECUTOR_ERROR, str(error))
            return
        moved = ports.choose(task.spec, self._tasks.live()) if task.spec.network_mode == "bridge" else {}
        told = [{"container": port, "host": host} for port, host in moved.items()]
        self._tasks.update(task, status=PREPARING, gpu_ids=gpu_ids, ports=told)
        environment = {**self._gpus.environment(gpu_ids), **task.spec.env, **ports.environment(moved)}
        spec = dataclasses.replace(task.spec, env=environment)
        pid = supervisor.fork(
            task.folder, spec, lock, self._notify_path, self._log_limit_bytes, moved, self._limits
        )
        self._children[pid] = task

    def _take_over(self, task: Task) -> None:
        """The supervisor lives: it was started by an agent before this one, or is just starting."""
        if task.stop:
            self.stop(task)
        self._started(task)

    def _started(self, task: Task) -> None:
        facts = read_json(task.path("job.json"))
        if facts is None or task.state.status == RUNNING or not task.is_live:
            return
        self._tasks.update(
            task,
            status=RUNNING,
            started_at=facts["started_at"],
            working_dir=facts["working_dir"],
            username=facts["username"],
        )

    def stop(self, task: Task) -> None:
        assert task.stop
        assert task.spec
        grace = task.spec.stop_grace_seconds if task.stop.grace_seconds is None else task.stop.grace_seconds
        write_json(task.path("stop.json"), {"grace_seconds": grace})
        known = read_json(task.path("supervisor.json"))
        if known is None:  # it has yet to look at stop.json
            return
        lock = _take_lock(task)
        if lock is None:  # alive, so the number is its own
            os.kill(int(known["pid"]), signal.SIGTERM)
            return
        os.close(lock)
        self.ensure(task)

    def notified(self, data: bytes) -> None:
        """A datagram of a supervisor."""
        kind, task_id, message = json.loads(data)
        task = self._tasks.find(task_id)
        if task is None or not task.is_live:
            return
        if kind == "log":
            task.wake()
        elif kind == "started":
            self._started(task)
        elif kind == "ended":
            self._started(task)
            self._finish_if_ended(task)
        elif kind == "blocked":
            self._tasks.update(task, message=message)

    def reap(self) -> None:
        """Collects supervisors that ended, and finds out why."""
        for pid, task in list(self._children.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._children[pid]
                if task.is_live:
                    self.ensure(task)

    def check(self) -> None:
        for task in self._tasks.live():
            if task.spec and task.spec.executor == self.name and task.state.status != "pending":
                self.ensure(task) if not _is_supervised(task) else self._started(task)

    def _finish_if_ended(self, task: Task) -> bool:
        """Ends the task when its supervisor has written down how it ended."""
        record = read_json(task.path("exit.json"))
        if record is None:
            return False
        reason, message = _reason(task, record["cause"], record["exit_status"], record["message"])
        self._tasks.end(task, reason, message, record["exit_status"])
        self._remove_groups(task)
        return True

    def _supervisor_died(self, task: Task) -> None:
        """The supervisor was killed: the kernel killed the job with it, and we kill what is left."""
        processes.kill_with_variable(supervisor.TASK_VARIABLE, task.id)
        self._remove_groups(task)
        logs.cut_broken_tail(task.log_folder)
        known = read_json(task.path("supervisor.json")) or {}
        if task.stop:
            self._tasks.end(task, task.stop.reason, task.stop.message)
        elif known.get("boot") != processes.boot_id():
            self._tasks.end(task, EXECUTOR_ERROR, "the host was restarted while the job ran")
        else:
            self._tasks.end(task, EXECUTOR_ERROR, "the supervisor of the job was killed, and the job with it")

    def _remove_groups(self, task: Task) -> None:
        """Of an ended task; what takes a moment to end is tried again."""
        if not cgroups.remove_groups(task.folder):
            asyncio.get_running_loop().call_later(GROUPS_SECONDS, self._remove_groups, task)

    def remove_leftovers(self) -> None:
        """Removes the groups of ended tasks whose agent died before it could."""
        for task in self._tasks.list():
            if not task.is_live:
                self._remove_groups(task)

    async def forget(self, task: Task) -> None:
        self._remove_groups(task)
        shutil.rmtree(job.foreign_base(task.id), ignore_errors=True)
        others = [other.spec for other in self._tasks.live() if other.spec and other is not task]
        kept = [mount["path"] for spec in others if spec.executor == self.name for mount in spec.mounts]
        equipment.unlink_mounts(task.path(job.LINKS), kept)

    def acknowledged(self, task: Task) -> None:
        return

    async def measure(self, task: Task) -> TaskMetrics:
        known = read_json(task.path("supervisor.json"))
        if known is None or not _is_supervised(task):
            raise usage.NotRunning("the processes of the task have ended")
        return usage.as_metrics(
            usage.of_processes(int(known["pid"])), await self._gpus.measure(task.state.gpu_ids)
        )

    async def exec(self, task: Task, request: ExecRequest) -> ProcessProgram:
        assert task.spec
        facts = read_json(task.path("job.json"))
        if facts is None:
            raise SessionRefused(409, "the task has not been started yet")
        try:
            account = job.find_account(request.user or task.spec.user)
        except job.StartError as error:
            raise SessionRefused(400, str(error)) from error
        if request.sftp:
            arguments = within.command("sftp", *helper.as_account(account, facts["working_dir"]))
            served = job.Command(
                arguments[0], arguments, {supervisor.TASK_VARIABLE: task.id}, "/", job.own_account()
            )
            return await start(task.folder, served, None)
        program, arguments = shell_command(account, request.command)
        environment = {
            **job.base_environment(account),
            **facts.get("variables", {}),
            **self._gpus.environment(task.state.gpu_ids),
            **task.spec.env,
            **ports.environment(_host_ports(task)),
            **({"PATH": facts["path"]} if "path" in facts else {}),  # older agents did not write it down
            **({"TERM": str(request.terminal.get("term") or "xterm")} if request.terminal else {}),
            **request.env,
            supervisor.TASK_VARIABLE: task.id,
            "PWD": facts["working_dir"],
        }
        command = job.Command(program, arguments, environment, facts["working_dir"], account)
        return await start(task.folder, command, request.terminal)

    async def connect(self, task: Task, request: ConnectRequest) -> socket.socket:
        if request.socket:
            return await self._dial(task, request.socket)
        port = reach.checked_port(request.port)
        return await reach.connect_port(_host_ports(task).get(port, port))

    async def _dial(self, task: Task, path: str) -> socket.socket:
        assert task.spec
        try:
            account = job.find_account(task.spec.user)
        except job.StartError as error:
            raise SessionRefused(400, str(error)) from error
        return await helper.dial(helper.as_account(account, task.state.working_dir or "/"), path)

    async def close(self) -> None:
        return


def _reason(task: Task, cause: str, exit_status: Optional[int], message: str) -> Tuple[str, str]:
    if cause == "error":
        return EXECUTOR_ERROR, message
    if cause == "checkout":
        return EXITED_WITH_ERROR, message
    if cause == "max_duration":
        assert task.spec
        return MAX_DURATION_EXCEEDED, f"the job ran for {task.spec.max_duration_seconds} s, its limit"
    if cause == "stopped":
        return (task.stop.reason, task.stop.message) if task.stop else (STOPPED, "")
    return (EXITED_WITH_ERROR, message) if exit_status else (DONE, message)


def _host_ports(task: Task) -> Dict[int, int]:
    """By a port of the task, the port of the host that it is."""
    return {port["container"]: port["host"] for port in task.state.ports}


def _take_lock(task: Task) -> Optional[int]:
    """The lock of the task's supervisor, for the caller to close; None while a supervisor lives."""
    descriptor = os.open(task.path("supervisor.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_supervised(task: Task) -> bool:
    lock = _take_lock(task)
    if lock is None:
        return True
    os.close(lock)
    return False

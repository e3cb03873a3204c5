"""What every executor can do. One suite of tests runs over all of them."""

from __future__ import annotations

import socket
from typing import Protocol

from dstack.agent.protocol import ConnectRequest, ExecRequest, TaskMetrics
from dstack.agent.sessions import Program
from dstack.agent.tasks import Task


class Executor(Protocol):
    """Makes tasks run and end. Every method may be called again, also after the agent was killed within it."""

    name: str

    def ensure(self, task: Task) -> None:
        """Starts the live task, or takes it over when it was started before; never starts it twice."""
        ...

    def stop(self, task: Task) -> None:
        """Makes the live task end as `task.stop` says."""
        ...

    async def forget(self, task: Task) -> None:
        """Removes what is outside of the ended task's folder."""
        ...

    def acknowledged(self, task: Task) -> None:
        """More of the log is stored elsewhere: a paused task may go on."""
        ...

    async def measure(self, task: Task) -> TaskMetrics:
        """What the running task uses now. Raises `usage.NotRunning`."""
        ...

    async def exec(self, task: Task, request: ExecRequest) -> Program:
        """Starts a program beside the running task. Raises `sessions.SessionRefused`."""
        ...

    async def connect(self, task: Task, request: ConnectRequest) -> socket.socket:
        """Connects into the running task. Raises `sessions.SessionRefused`."""
        ...

    def check(self) -> None:
        """Looks for what no message told: called every second while a task lives."""
        ...

    async def close(self) -> None:
        """The agent ends; its tasks do not."""
        ...

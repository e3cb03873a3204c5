"""The tasks of an agent: their journal on disk, their states in memory, and who waits for changes.

What is asked for is written down before it is done, so that an agent that was killed finds it again.
Folder of a task (`tasks/<id>/`): `spec.json`, `state.json`, `logs/`, and what its executor keeps there.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import os
import shutil
import time
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from dstack.agent import logs
from dstack.agent.files import read_json, remove, sync_folder, write_json
from dstack.agent.protocol import ENDED, PENDING, RUNNING, StopRequest, TaskSpec, TaskState

SEQ_RESERVE = 1000
_log = logging.getLogger(__name__)


class TaskConflict(Exception):
    """The task is not in a state that allows this."""


class Task:
    """One task; its `state` is replaced, never changed."""

    def __init__(self, folder: str, spec: Optional[TaskSpec], state: TaskState) -> None:
        self.folder = folder
        self.spec = spec
        """None: it was stopped before it was ever asked for."""
        self.state = state
        self.stop: Optional[StopRequest] = None
        self.is_saved = True
        self._waiters: Set[asyncio.Future[None]] = set()

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def is_live(self) -> bool:
        return self.state.status != ENDED

    @property
    def log_folder(self) -> str:
        return os.path.join(self.folder, "logs")

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def uploaded(self, name: str) -> str:
        """Path of an uploaded file."""
        return self.path(os.path.join("files", name))

    def drop_credentials(self) -> None:
        """They are needed until the start only."""
        for name in credential_files(self.spec) if self.spec else ():
            remove(self.uploaded(name))

    def wake(self) -> None:
        """Tells those who follow the log that there may be more, or that the task has ended."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def next_change(self) -> asyncio.Future[None]:
        """Done at the next `wake`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        return waiter

    def full_state(self) -> TaskState:
        """The state with the log's bounds of this moment."""
        start, end = logs.bounds(self.log_folder)
        acknowledged = logs.read_acknowledged(self.log_folder)
        return dataclasses.replace(self.state, log_start=start, log_end=end, log_acknowledged=acknowledged)


class Tasks:
    """All tasks of one agent folder."""

    def __init__(self, folder: str, sync: bool = True) -> None:
        self.folder = folder
        self._sync = sync
        self._tasks: Dict[str, Task] = {}
        self._by_seq: collections.OrderedDict[int, Task] = collections.OrderedDict()
        self._waiters: Set[asyncio.Event] = set()
        self.on_change: Callable[[Task], None] = lambda task: None
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        self._seq_file = os.path.join(folder, "seq.json")
        self.seq = int((read_json(self._seq_file) or {}).get("reserved", 0))
        self._reserved = self.seq
        self._load()

    @property
    def _root(self) -> str:
        return os.path.join(self.folder, "tasks")

    def _load(self) -> None:
        loaded: List[Task] = []
        for name in os.listdir(self._root):
            path = os.path.join(self._root, name)
            if name.startswith("."):  # half made or half removed when the agent died
                shutil.rmtree(path, ignore_errors=True)
                continue
            loaded.append(self._load_task(path))
        for task in sorted(loaded, key=lambda task: task.state.seq):
            self._tasks[task.id] = task
            self._by_seq[task.state.seq] = task
            self.seq = max(self.seq, task.state.seq)

    def _load_task(self, path: str) -> Task:
        saved = read_json(os.path.join(path, "state.json"))
        if saved is None:
            raise ValueError(f"{path} has no state.json")
        spec = read_json(os.path.join(path, "spec.json"))
        task = Task(path, TaskSpec.from_json(spec) if spec else None, TaskState.from_json(saved["state"]))
        task.stop = StopRequest.from_json(saved["stop"]) if saved.get("stop") else None
        return task

    def _next_seq(self) -> int:
        """Grows over restarts too: numbers are reserved on disk in blocks before they are used."""
        if self.seq >= self._reserved:
            write_json(self._seq_file, {"reserved": self.seq + SEQ_RESERVE}, self._sync)
            self._reserved = self.seq + SEQ_RESERVE
        self.seq += 1
        return self.seq

    def find(self, task_id: str) -> Optional[Task]:
        return self._tasks.get(task_id)

    def list(self) -> List[Task]:
        return list(self._tasks.values())

    def live(self) -> List[Task]:
        return [task for task in self._tasks.values() if task.is_live]

    def create(self, task_id: str, spec: Optional[TaskSpec], stop: Optional[StopRequest] = None) -> Task:
        """Writes a new task down; with `stop`, as ended before it began. Raises OSError, leaving nothing."""
        status, now = (PENDING if spec else ENDED), time.time()
        state = TaskState(id=task_id, seq=self._next_seq(), status=status, created_at=now)
        if stop:
            state = dataclasses.replace(state, reason=stop.reason, message=stop.message, ended_at=now)
        task = Task(os.path.join(self._root, task_id), spec, state)
        task.stop = stop
        made = os.path.join(self._root, ".new-" + task_id)
        try:
            os.mkdir(made, 0o700)
            if spec:
                write_json(os.path.join(made, "spec.json"), spec.to_json(), self._sync)
            write_json(os.path.join(made, "state.json"), _saved(task), self._sync)
            os.rename(made, task.folder)
            if self._sync:
                sync_folder(self._root)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(task.folder, ignore_errors=True)
            raise
        self._tasks[task_id] = task
        self._publish(task, state.seq, state.seq)
        return task

    def update(self, task: Task, **changes: Any) -> None:
        """Changes the state, writes it down and tells everyone. A full disk delays the writing, not the change."""
        old = task.state
        task.state = dataclasses.replace(old, seq=self._take_seq(), **changes)
        if changes.get("status") in (RUNNING, ENDED):
            task.drop_credentials()
        self.save(task)
        self._publish(task, old.seq, task.state.seq)

    def _take_seq(self) -> int:
        try:
            return self._next_seq()
        except OSError as error:
            _log.error("cannot reserve sequence numbers: %s", error)
            self.seq += 1
            return self.seq

    def save(self, task: Task) -> None:
        """Writes the state down; what cannot be written now is written by a later `save_unsaved`."""
        try:
            write_json(task.path("state.json"), _saved(task), self._sync and not task.is_live)
            task.is_saved = True
        except OSError as error:
            task.is_saved = False
            _log.error("cannot write the state of task %s: %s", task.id, error)

    def save_unsaved(self) -> None:
        """Tries again what could not be written."""
        for task in self._tasks.values():
            if not task.is_saved:
                self.save(task)

    def request_stop(self, task: Task, request: StopRequest) -> None:
        """Writes the wish to stop down. Raises OSError. The first reason counts; the grace may be shortened."""
        before, first = task.stop, task.stop or request
        task.stop = dataclasses.replace(first, grace_seconds=request.grace_seconds)
        try:
            write_json(task.path("state.json"), _saved(task), self._sync)
        except OSError:
            task.stop = before
            raise

    def end(self, task: Task, reason: str, message: str = "", exit_status: Optional[int] = None) -> None:
        """The task has ended; no effect when it had before."""
        if task.is_live:
            changes = {"reason": reason, "message": message, "exit_status": exit_status, "ended_at": time.time()}
            self.update(task, status=ENDED, pull_progress=None, **changes)
            task.wake()

    def delete(self, task: Task) -> None:
        """Forgets an ended task. Raises TaskConflict while it lives."""
        if task.is_live:
            raise TaskConflict(f"the task is {task.state.status}; stop it first")
        removed = os.path.join(self._root, ".deleted-" + task.id)
        shutil.rmtree(removed, ignore_errors=True)
        os.rename(task.folder, removed)
        del self._tasks[task.id]
        self._by_seq.pop(task.state.seq, None)
        task.wake()
        shutil.rmtree(removed, ignore_errors=True)

    def _publish(self, task: Task, old_seq: int, new_seq: int) -> None:
        self._by_seq.pop(old_seq, None)
        self._by_seq[new_seq] = task
        self.rouse()
        self.on_change(task)

    def rouse(self) -> None:
        """Has those who subscribed look, as after a change."""
        for waiter in self._waiters:
            waiter.set()

    def subscribe(self) -> asyncio.Event:
        """Set at each change, until `unsubscribe`."""
        waiter = asyncio.Event()
        self._waiters.add(waiter)
        return waiter

    def unsubscribe(self, waiter: asyncio.Event) -> None:
        self._waiters.discard(waiter)

    def changed_after(self, seq: int) -> List[Tuple[int, Task]]:
        """Tasks whose newest state is younger than `seq`, each with the number of that state, oldest first."""
        changed: List[Tuple[int, Task]] = []
        for number in reversed(self._by_seq):
            if number <= seq:
                break
            changed.append((number, self._by_seq[number]))
        return changed[::-1]


def credential_files(spec: TaskSpec) -> List[str]:
    """Names of the uploaded files that are secret."""
    names = [(spec.repo or {}).get("credentials"), (spec.ssh or {}).get("key")]
    return [name for name in names if name]


def _saved(task: Task) -> Dict[str, Any]:
    return {"state": task.state.to_json(), "stop": task.stop.to_json() if task.stop else None}

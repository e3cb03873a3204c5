"""The small process that owns one job process and outlives the agent.

It is forked from the agent (so that it starts in a millisecond), holds a lock for as long as it lives, runs
the job on a pseudo-terminal, writes its output into the task's log, stops it when asked or when its time is
over, leaves no process behind and writes down how it ended. Files in the task's folder:

`supervisor.lock`   locked while the supervisor lives; taken by the agent before the fork
`supervisor.json`   written before the job is started: this task has been started, never do it again
`job.json`          the job runs: its process id, when, where and as whom
`stop.json`         by the agent, followed by SIGTERM: `{"grace_seconds"}`
`exec.sock`         where the agent asks for programs beside the job (see `execs`)
`cgroups.json`      the groups that limit the job (see `cgroups`)
`exit.json`         how it ended: `{"cause": exited|stopped|max_duration|checkout|error, "exit_status", "message"}`
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, Dict, Optional, Tuple

from dstack.agent import processes
from dstack.agent.executors import cgroups, delivery, execs, job, ports, process_nodes
from dstack.agent.files import read_json, remove, write_json
from dstack.agent.http import short_path
from dstack.agent.logs import LogWriter
from dstack.agent.protocol import TaskSpec
from dstack.agent.tasks import credential_files

TASK_VARIABLE = "DSTACK_AGENT_TASK"
PROCESS_NAME = "dstack-task"
PARTIAL_LINE_SECONDS = 0.02
GATHER_SECONDS = 0.01
"""Lines that come so soon after others were written wait for more: what comes thick and fast is written, told and
sent in few pieces, each with the time of its end."""
GATHER_BYTES = 256 * 1024
"""So much is not kept waiting."""
READ_BYTES = 32 * 1024
RETRY_SECONDS = 0.2
LONGEST_POLL_SECONDS = 3600.0
"""The kernel counts milliseconds in 32 bits; a limit may be weeks."""
DRAIN_SECONDS = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


def fork(
    folder: str,
    spec: TaskSpec,
    lock: int,
    notify_path: str,
    log_limit_bytes: int,
    moved: Dict[int, int],
    limits: cgroups.Cgroups,
) -> int:
    """Starts the supervisor of a task; `lock` is the locked descriptor that it keeps. Returns its process id.

    `moved`: ports of the task, and the ports of the host that they are to be.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        _detach(folder, lock)
        Supervisor(folder, spec, notify_path, log_limit_bytes, moved, limits).run()
        status = 0
    except BaseException:  # noqa: BLE001 - the last frame of this process: told in supervisor.err, then it ends
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _detach(folder: str, lock: int) -> None:
    """Leaves everything of the agent behind but the lock."""
    gc.disable()  # collecting the agent's sockets would close descriptors that are ours by now
    signal.set_wakeup_fd(-1)
    os.setsid()
    os.umask(0o022)
    errors = os.open(os.path.join(folder, "supervisor.err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, null), (2, errors)):
        os.dup2(source, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != lock:
            with contextlib.suppress(OSError):
                os.close(int(name))
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - lives as long as this process
    processes.name_this_process(PROCESS_NAME)
    processes.adopt_orphans()


class Supervisor:
    """One job from start to end."""

    def __init__(
        self,
        folder: str,
        spec: TaskSpec,
        notify_path: str,
        log_limit_bytes: int,
        moved: Dict[int, int],
        limits: cgroups.Cgroups,
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.log_limit_bytes = log_limit_bytes
        self.limits = limits
        self.group = cgroups.Group()
        self.log = LogWriter(os.path.join(folder, "logs"))
        self.notifier = Notifier(notify_path, spec.id)
        self.output = bytearray()
        self.mover = ports.PortMover({port: host for port, host in moved.items() if port != host})
        self.pid = 0
        self.master = -1
        self.wakeup = -1
        self.cause = "exited"
        self.kill_at: Optional[float] = None
        self.end_at: Optional[float] = None
        self.flush_at: Optional[float] = None
        self.flushed_at = 0.0
        self.blocked = ""
        self.execs: Optional[execs.Execs] = None

    def run(self) -> None:
        """Runs the job; returns when its end is written down."""
        self._listen_to_signals()
        write_json(self._path("supervisor.json"), {"pid": os.getpid(), "boot": processes.boot_id()}, sync=True)
        if os.path.exists(self._path("stop.json")):
            self._finish("stopped", None, "")
            return
        try:
            place = job.prepare(self.spec, self.folder)
            cause, message = self._deliver(place)
            if cause:
                self._finish(cause, None, message)
                return
            self.group = self._limit()
            marks = {TASK_VARIABLE: self.spec.id}
            self._let_nodes_in(place, marks)
            started = job.start(self.spec, place, marks, self.mover, self.group)
        except job.StartError as error:
            self._finish("error", None, str(error))
            return
        self.pid, self.master = started.pid, started.master
        self.execs = self._retry(execs.Execs, self._path(execs.SOCKET), self.group)
        facts = {**started.facts(), "variables": place.variables(), "path": place.path}
        self._retry(write_json, self._path("job.json"), facts)
        self.notifier.send("started")
        if self.spec.max_duration_seconds:
            self.end_at = time.monotonic() + self.spec.max_duration_seconds
        status = self._follow()
        self._end_everything()
        exit_status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        self._finish(self.cause, exit_status, self.group.ending() or _signal_message(status))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _limit(self) -> cgroups.Group:
        try:
            group: cgroups.Group = self._retry(self.limits.make, self.spec, self.folder)
        except OSError as error:  # though the agent could do it when it was started
            self.notifier.send("blocked", f"the job runs without limits on CPU and memory: {error}")
            return cgroups.Group()
        return group

    def _deliver(self, place: job.Place) -> Tuple[str, str]:
        """Brings in repository, files and Python; why that ended the task, as `exit.json` says, or nothing."""
        if self.spec.repo is None and not self.spec.files and not self.spec.python:
            return "", ""
        delivering = delivery.start(self.spec, self.folder, place)
        poll = select.poll()
        for descriptor in (self.wakeup, delivering.pipe):
            poll.register(descriptor, select.POLLIN)
        stopped = False
        while delivering.pipe not in dict(poll.poll()):
            with contextlib.suppress(BlockingIOError):
                os.read(self.wakeup, 4096)
            if not stopped and os.path.exists(self._path("stop.json")):
                stopped = True
                processes.kill_descendants(os.getpid())
        cause, message = delivering.result()
        while processes.kill_descendants(os.getpid()):
            time.sleep(0.005)
        return ("stopped", "") if stopped else (cause, message)

    def _let_nodes_in(self, place: job.Place, marks: Dict[str, str]) -> None:
        """The last step before the start: secrets that were uploaded are not needed any more."""
        message = ""
        if self.spec.ssh:
            message = process_nodes.let_in(self.spec, self.folder, place, marks, self.group)
        if message:
            self._retry(self.log.append, time.time_ns() // 1000, message.encode())
        for name in credential_files(self.spec):
            remove(os.path.join(self._path("files"), name))

    def _listen_to_signals(self) -> None:
        self.wakeup, writing = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(writing, False)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def _follow(self) -> int:
        """Moves output to the log until the job's first process ends; returns its wait status."""
        self._heed_stop()
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        assert self.execs
        self.execs.watch(poll)
        if self.mover.listener >= 0:
            poll.register(self.mover.listener, select.POLLIN)
        reading = False
        while True:
            wanted = not self._must_pause()
            if wanted != reading and self.master >= 0:
                (poll.register(self.master, select.POLLIN) if wanted else poll.unregister(self.master))
                reading = wanted
            ready = dict(poll.poll(self._timeout_ms(reading)))
            if self.master in ready and not self._read():
                poll.unregister(self.master)
                os.close(self.master)
                self.master = -1
            if self.mover.listener in ready and not self.mover.answer():
                poll.unregister(self.mover.listener)
                self.mover.close()
            self._flush_if_due()
            self._heed_clock()
            self.execs.serve(ready)
            if self.wakeup in ready:
                os.read(self.wakeup, 4096)
                self._heed_stop()
                status = self._reap()
                if status is not None:
                    return status

    def _timeout_ms(self, reading: bool) -> Optional[float]:
        now = time.monotonic()
        times = [at - now for at in (self.kill_at, self.end_at, self.flush_at, self._execs_at()) if at is not None]
        if not reading and self.master >= 0:
            times.append(RETRY_SECONDS)
        if self.notifier.is_owing:
            times.append(0.005)
        return min(max(0.0, min(times)), LONGEST_POLL_SECONDS) * 1000 + 1 if times else None

    def _execs_at(self) -> Optional[float]:
        return self.execs.next_at if self.execs else None

    def _must_pause(self) -> bool:
        """Whether the job has to wait: its output is not stored elsewhere yet, or the disk is full."""
        if self.notifier.is_owing:
            self.notifier.send("log")
        if self.blocked:
            self._flush(len(self.output))
        return bool(self.blocked) or self.log.exceeds(self.log_limit_bytes)

    def _read(self) -> bool:
        """Reads what the job has written by now, as far as there is room; False at the end of all output."""
        alive = True
        while len(self.output) < GATHER_BYTES:
            try:
                data = os.read(self.master, READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                data = b""
            if not data:
                alive = False
                break
            self.output += data
        self._write_lines(everything=not alive)
        return alive

    def _write_lines(self, everything: bool) -> None:
        """Writes whole lines; one without an end, and those that come thick and fast, wait a moment for more."""
        is_full = len(self.output) >= GATHER_BYTES
        due_at = self.flushed_at + GATHER_SECONDS
        if everything or is_full or time.monotonic() >= due_at:
            lines = self.output.rfind(b"\n") + 1
            self._flush(len(self.output) if everything or (is_full and not lines) else lines)
            due_at = time.monotonic() + PARTIAL_LINE_SECONDS
        self.flush_at = due_at if self.output else None

    def _flush_if_due(self) -> None:
        """Whole lines first; when there are none, the one without an end has waited long enough."""
        if self.flush_at is not None and time.monotonic() >= self.flush_at:
            self.flush_at = None
            lines = self.output.rfind(b"\n") + 1
            self._flush(lines or len(self.output))
            if self.output:
                self.flush_at = time.monotonic() + PARTIAL_LINE_SECONDS

    def _flush(self, length: int) -> None:
        """Writes the first `length` bytes of the output at once; a full disk keeps them for later."""
        if not length:
            return
        try:
            self.log.append(time.time_ns() // 1000, bytes(self.output[:length]))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._block("the disk of the host is full: the job waits with its output")
            return
        del self.output[:length]
        self.flushed_at = time.monotonic()
        self._block("")
        self.notifier.send("log")

    def _block(self, message: str) -> None:
        if message != self.blocked:
            self.blocked = message
            self.notifier.send("blocked", message)

    def _heed_stop(self) -> None:
        """Does what `stop.json` says, if it is there."""
        request = read_json(self._path("stop.json"))
        if request is not None:
            self._interrupt("stopped", float(request["grace_seconds"]))

    def _interrupt(self, cause: str, grace_seconds: float) -> None:
        kill_at = time.monotonic() + grace_seconds
        if self.kill_at is None:
            self.cause, self.kill_at = cause, kill_at
            if grace_seconds > 0:
                processes.signal_group(self.pid, signal.SIGINT)
        self.kill_at = min(self.kill_at, kill_at)
        self._heed_clock()

    def _heed_clock(self) -> None:
        now = time.monotonic()
        if self.end_at is not None and now >= self.end_at:
            self.end_at = None
            self._interrupt("max_duration", self.spec.stop_grace_seconds)
        if self.kill_at is not None and now >= self.kill_at:
            processes.signal_group(self.pid, signal.SIGKILL)
            self.kill_at = now + RETRY_SECONDS

    def _reap(self) -> Optional[int]:
        """Collects ended processes; the status of the job's first one when it is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == self.pid:
                return status
            if pid == 0:
                return None
            if self.execs:
                self.execs.ended(pid, status)

    def _end_everything(self) -> None:
        """Kills whatever the job left behind, then takes the rest of its output."""
        if self.execs:
            self.execs.end_all()
        deadline = time.monotonic() + DRAIN_SECONDS
        while processes.kill_descendants(os.getpid()) and time.monotonic() < deadline:
            self._drain()
            time.sleep(0.005)
        self._drain()
        while self.output:
            self._flush(len(self.output))
            if self.blocked:
                time.sleep(RETRY_SECONDS)

    def _drain(self) -> None:
        """Reads what is in the terminal; it is bounded, as nobody writes any more."""
        while self.master >= 0:
            before = self.log.end
            alive = self._read()
            while self.blocked:
                time.sleep(RETRY_SECONDS)
                self._flush(len(self.output))
            if not alive:
                os.close(self.master)
                self.master = -1
            elif self.log.end == before:
                return

    def _finish(self, cause: str, exit_status: Optional[int], message: str) -> None:
        record = {"cause": cause, "exit_status": exit_status, "message": message, "ended_at": time.time()}
        self.log.close()
        self._retry(write_json, self._path("exit.json"), record, True)
        self.notifier.send_surely("ended")

    def _retry(self, action: Any, *arguments: Any) -> Any:
        """Repeats what a full disk forbids until it can be done; what `action` returns."""
        while True:
            try:
                result = action(*arguments)
                self._block("")
                return result
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._block("the disk of the host is full: what the job does cannot be written down")
                time.sleep(RETRY_SECONDS)


class Notifier:
    """Tells the agent by datagrams; an agent that is not there finds everything in the files later."""

    def __init__(self, path: str, task_id: str) -> None:
        self._path = path
        self._id = task_id
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.is_owing = False
        """A message about the log did not fit into the agent's queue; it has to be repeated."""

    def send(self, kind: str, message: str = "") -> bool:
        """False when the agent's queue is full."""
        self.is_owing = False
        try:
            address, folder = short_path(self._path)
            try:
                self._socket.sendto(json.dumps([kind, self._id, message]).encode(), address)
            finally:
                os.close(folder)
        except (BlockingIOError, InterruptedError):
            self.is_owing = True
        except OSError:  # no agent now; the next one reads the files
            return True
        return not self.is_owing

    def send_surely(self, kind: str) -> None:
        """Repeats while the queue is full, for two seconds; after that the agent's own check finds it."""
        deadline = time.monotonic() + 2
        while not self.send(kind) and time.monotonic() < deadline:
            time.sleep(0.005)


def _signal_message(status: int) -> str:
    if os.WIFEXITED(status):
        return ""
    number = os.WTERMSIG(status)
    return f"killed by {signal.Signals(number).name if number in list(signal.Signals) else number}"

"""What a previous life of this folder's agent has left on the host: its journal is gone, what it started is not.

Only what is this folder's for certain is touched: other agents may work on the same host.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
from typing import Callable, Iterator, Optional, Tuple

from dstack.agent import processes
from dstack.agent.executors import job, supervisor

UPLOAD_SECONDS = 86400.0
"""A task is put right after its files. Those that nobody has asked for in so long are of none."""
_log = logging.getLogger(__name__)


def is_installed(folder: str) -> bool:
    """Whether the agent in that folder was installed to serve this host, and has its Docker for itself."""
    return os.path.exists(os.path.join(folder, "command.json"))


def remove(folder: str, is_known: Callable[[str], bool]) -> None:
    """Ends processes of tasks that are not known, and removes their folders and old uploads."""
    for pid, task_id in list(_supervisors(folder)):
        if not is_known(task_id):
            _log.info("ending what is left of task %s, which is not known", task_id)
            _end(pid, task_id)
    _remove_uploads(os.path.join(folder, "uploads"))


def _supervisors(folder: str) -> Iterator[Tuple[int, str]]:
    """Process id and task of every supervisor that was started from this very folder."""
    for pid in processes.named(supervisor.PROCESS_NAME):
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            task_id = _task_of(pid, os.path.join(folder, "tasks", ""))
            if task_id is not None and os.path.samefile(f"/proc/{pid}/root", "/"):
                yield pid, task_id


def _task_of(pid: int, tasks: str) -> Optional[str]:
    """From the lock that each supervisor holds; its path is known though the file is gone. Raises OSError."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = os.readlink(f"/proc/{pid}/fd/{name}")
        if path.startswith(tasks):
            return path[len(tasks) :].split("/")[0]
    return None


def _end(pid: int, task_id: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # the kernel kills the job with it
    processes.kill_with_variable(supervisor.TASK_VARIABLE, task_id)
    shutil.rmtree(job.foreign_base(task_id), ignore_errors=True)


def _remove_uploads(folder: str) -> None:
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        if time.time() - os.stat(path).st_mtime > UPLOAD_SECONDS:
            shutil.rmtree(path, ignore_errors=True)

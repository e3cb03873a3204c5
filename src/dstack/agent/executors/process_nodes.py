"""The `sshd` beside a process, for the other nodes of its replica (see `dstack.agent.nodes`)."""

from __future__ import annotations

import os
import time
from typing import Dict

from dstack.agent import nodes
from dstack.agent.executors import job
from dstack.agent.executors.cgroups import Group
from dstack.agent.executors.ports import PortMover
from dstack.agent.protocol import TaskSpec

LISTEN_SECONDS = 10.0
POLL_SECONDS = 0.01
OUTPUT = "sshd.log"
"""In the task's folder."""


def let_in(spec: TaskSpec, folder: str, place: job.Place, marks: Dict[str, str], group: Group) -> str:
    """Waits until it listens. The line for the job's log where it does not; else nothing.

    It is a child of this process, dies with it, and runs what others run here; all of it counts for `group`.
    """
    assert spec.ssh
    text = nodes.command(spec.ssh, place.ssh_folder, nodes.PROCESS)
    environment = job.environment_of(spec, place, marks)
    command = job.Command("/bin/sh", ["sh", "-c", text], environment, place.working_dir, place.account)
    output = os.path.join(folder, OUTPUT)
    try:
        with open(os.path.join(folder, "files", spec.ssh["key"]), "rb") as key, open(output, "wb") as said:
            files = (key.fileno(), said.fileno(), said.fileno())
            pid = job.spawn(command, files, False, PortMover({}), group)
    except (OSError, job.StartError) as error:
        return nodes.without(str(error))
    if _listens(pid, os.path.join(place.ssh_folder, nodes.PID_FILE)):
        return ""
    with open(output, errors="replace") as said_by_it:
        return nodes.without(nodes.last_words(said_by_it.read()))


def _listens(pid: int, mark: str) -> bool:
    deadline = time.monotonic() + LISTEN_SECONDS
    while not os.path.exists(mark):
        if os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True

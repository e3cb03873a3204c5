"""The `sshd` of the image beside a container's own program, for the other nodes of its replica (see
`dstack.agent.nodes`)."""

from __future__ import annotations

import asyncio
import time
from typing import Optional

from dstack.agent import nodes
from dstack.agent.docker import Docker, DockerError, DockerUnreachable
from dstack.agent.executors import container_exec
from dstack.agent.executors.container_log import note_before
from dstack.agent.protocol import ExecRequest
from dstack.agent.tasks import Task

LISTEN_SECONDS = 30.0


async def let_in(docker: Docker, task: Task, container: str, agent_id: str) -> None:
    """Waits until it listens; the job's log says where it does not. Raises DockerUnreachable, OSError."""
    try:
        why = await asyncio.wait_for(_start(docker, task, container, agent_id), LISTEN_SECONDS)
    except asyncio.TimeoutError:
        why = f"its sshd does not listen after {LISTEN_SECONDS:.0f} s"
    except DockerUnreachable:
        raise
    except DockerError as error:
        why = str(error)
    if why is not None and await _runs(docker, container):  # nobody wants into one that has ended
        note_before(task.folder, time.time_ns() // 1000, nodes.without(why))


async def _start(docker: Docker, task: Task, container: str, agent_id: str) -> Optional[str]:
    """The end of what was said where it failed; None when it listens."""
    assert task.spec
    assert task.spec.ssh
    text = nodes.command(task.spec.ssh, nodes.FOLDER, nodes.CONTAINER)
    with open(task.uploaded(task.spec.ssh["key"]), "rb") as file:  # noqa: ASYNC230 - a small local file
        key = file.read()
    program = await container_exec.start(docker, container, ExecRequest(command=text), agent_id)
    try:
        await program.write(key)
        await program.end_input()
        said = b"".join([data async for _, data in program.outputs()[0]])
        ended = await program.wait()
    finally:
        await program.close()
    return nodes.last_words(said.decode(errors="replace")) if ended.exit_status else None


async def _runs(docker: Docker, container: str) -> bool:
    found = await docker.call("GET", f"/containers/{container}/json")
    return bool(found["State"]["Running"])

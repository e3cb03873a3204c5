"""What is done about a job submission: its task on the agent is put, stopped and removed. All idempotent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select

from dstack.agent.protocol import StopRequest
from dstack.backends.base import InstanceAddress
from dstack.core.errors import AgentError, Unreachable
from dstack.core.interpolation import InterpolationError
from dstack.core.jobs import JobSpec, JobTerminationReason
from dstack.server.db.tables import InstanceRow, JobRow, ProjectRow, RepoRow, RunRow, SecretRow
from dstack.server.hosts.agent_client import AgentRefused
from dstack.server.orchestrator.decision import Effect, EffectHandler, Facts, Key, TerminalEffectError
from dstack.server.orchestrator.jobs.rules import PutTask, RemoveTask, StopTask
from dstack.server.orchestrator.jobs.uploads import RepoAccess, UploadGone, read_access, read_uploads
from dstack.server.orchestrator.world import Agent, World
from dstack.server.planning.tasks import CannotRun, Host, Node, TaskContext, make_task

TASK_EXISTS = 409
"""The agent's answer to a file of a task that it has."""


async def put_task(effect: PutTask, world: World, key: Key) -> Facts:
    """What the agent then says of the task is written by the host's watcher, in the order in which it happens."""
    asked = await _context(world, key)
    try:
        task = make_task(asked.task, asked.host)
    except (CannotRun, InterpolationError) as error:
        raise _never(JobTerminationReason.TERMINATED_BY_SERVER, str(error)) from error
    agent = _agent(world, asked.address)
    try:
        await _upload(asked, world, agent)
        await agent.put_task(task)
    except (AgentError, UploadGone) as error:
        raise _never(JobTerminationReason.EXECUTOR_ERROR, str(error)) from error
    return {"provisioned_at": world.clock()}


async def _upload(asked: _Asked, world: World, agent: Agent) -> None:
    """An agent that has the task already, from an attempt before, takes and needs no more files."""
    uploads = read_uploads(world.database, asked.task.spec, asked.repo_id, asked.access)
    async for name, content in uploads:
        try:
            await agent.put_file(str(asked.task.job_id), name, content)
        except AgentRefused as error:
            if error.status != TASK_EXISTS:
                raise
            return


def _never(reason: JobTerminationReason, message: str) -> TerminalEffectError:
    return TerminalEffectError(
        message, {"terminate_requested": reason.value, "termination_reason_message": message}
    )


async def stop_task(effect: StopTask, world: World, key: Key) -> Facts:
    """A task that the agent never heard of is recorded there as ended, so a late start of it starts nothing."""
    request = StopRequest(reason=effect.reason, grace_seconds=effect.grace_seconds)
    await _agent(world, await _address(world, key)).stop_task(str(key.id), request)
    return {"stop_sent_at": world.clock()}


async def remove_task(effect: RemoveTask, world: World, key: Key) -> Facts:
    """Its log is stored, its end recorded: the host may forget it."""
    await _agent(world, await _address(world, key)).delete_task(str(key.id))
    return {"task_removed": True}


def _agent(world: World, address: str) -> Agent:
    return world.agents.client(InstanceAddress(**json.loads(address)))


async def _address(world: World, key: Key) -> str:
    query = select(InstanceRow.address).join(JobRow, JobRow.instance_id == InstanceRow.id)
    async with world.database.session() as session:
        address = await session.scalar(query.where(JobRow.id == key.id))
    if address is None:
        raise TerminalEffectError("the instance of the job is gone")
    return address


@dataclass(frozen=True)
class _Asked:
    """A job's task as it is to be on its host, and what goes along."""

    task: TaskContext
    host: Host
    address: str
    repo_id: UUID | None
    access: RepoAccess


async def _context(world: World, key: Key) -> _Asked:
    """A few queries: the job and where it runs, its nodes, the project's secrets, its repository's credentials."""
    query = (
        select(JobRow, RunRow, ProjectRow.name, RepoRow.name, InstanceRow)
        .join(RunRow, RunRow.id == JobRow.run_id)
        .join(ProjectRow, ProjectRow.id == JobRow.project_id)
        .join(InstanceRow, InstanceRow.id == JobRow.instance_id)
        .outerjoin(RepoRow, RepoRow.id == RunRow.repo_id)
        .where(JobRow.id == key.id)
    )
    async with world.database.session() as session:
        job, run, project_name, repo_name, instance = (await session.execute(query)).one()
        nodes_query = (
            select(JobRow.job_num, JobRow.job_spec, InstanceRow.address)
            .join(InstanceRow, InstanceRow.id == JobRow.instance_id)
            .where(
                JobRow.run_id == job.run_id,
                JobRow.replica_num == job.replica_num,
                JobRow.submission_num == job.submission_num,
            )
            .order_by(JobRow.job_num)
        )
        nodes = (await session.execute(nodes_query)).all()
        secret_rows = []
        if "${{" in job.job_spec:
            where = SecretRow.project_id == job.project_id
            secret_rows = list(await session.scalars(select(SecretRow).where(where)))
        spec = JobSpec.model_validate_json(job.job_spec, extra="ignore")
        access = await read_access(session, world.encryption, spec, run.repo_id, run.user_id)
    secrets = {
        row.name: str(world.encryption.decrypt(row.value, f"secrets.value:{row.id}")) for row in secret_rows
    }
    info: Mapping[str, Any] = json.loads(instance.agent_info or "{}")
    context = TaskContext(
        job_id=job.id,
        run_id=job.run_id,
        run_name=run.run_name,
        project_name=project_name,
        repo_name=repo_name,
        spec=spec,
        nodes=tuple(_node(job_spec, address) for _, job_spec, address in nodes),
        secrets=secrets,
        clone_url=access.clone_url,
        has_repo_credentials=access.credentials is not None,
    )
    host = Host(
        backend=instance.backend or "",
        executors=tuple(info.get("executors", ())),
        takes_whole=job.blocks >= (instance.total_blocks or 1) and instance.backend != "local",
    )
    if instance.address is None:
        raise Unreachable(f"Instance {instance.name} has no address")
    return _Asked(context, host, instance.address, run.repo_id, access)


def _node(job_spec: str, address: str | None) -> Node:
    where = json.loads(address or "{}")
    gpu = json.loads(job_spec)["requirements"]["resources"]["gpu"]
    count = (gpu["count"]["min"] or 0) if gpu else 0
    return Node(ip=where.get("internal_ip") or where.get("hostname") or "", gpus=count)


HANDLERS: Mapping[type[Effect], EffectHandler] = {
    PutTask: put_task,
    StopTask: stop_task,
    RemoveTask: remove_task,
}

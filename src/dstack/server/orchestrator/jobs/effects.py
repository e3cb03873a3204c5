"""What is done about a job submission: its task on the agent is put, stopped and removed. All idempotent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.agent.protocol import StopRequest
from dstack.backends.base import InstanceAddress
from dstack.core.backends import LOCAL
from dstack.core.durations import OFF
from dstack.core.errors import AgentError, Unreachable
from dstack.core.instances import InstanceOfferWithAvailability
from dstack.core.interpolation import InterpolationError
from dstack.core.jobs import JobSpec, JobTerminationReason
from dstack.server.db.tables import FleetRow, InstanceRow, JobRow, ProjectRow, RepoRow, RunRow, SecretRow
from dstack.server.hosts.agent_client import AgentRefused
from dstack.server.hosts.connections import parse_address
from dstack.server.orchestrator.decision import Effect, EffectHandler, Facts, Key, TerminalEffectError
from dstack.server.orchestrator.jobs.mounts import VolumeNotAttached, attach_volumes
from dstack.server.orchestrator.jobs.node_keys import ensure_node_key
from dstack.server.orchestrator.jobs.rules import PutTask, RemoveTask, StopTask
from dstack.server.orchestrator.jobs.uploads import RepoAccess, UploadGone, read_access, read_uploads
from dstack.server.orchestrator.world import Agent, World
from dstack.server.planning.offers import stored_offer
from dstack.server.planning.tasks import (
    UNLIMITED_S,
    CannotRun,
    Host,
    Node,
    TaskContext,
    choose_executor,
    make_task,
    own_address,
    share_on,
    upper_ends,
)
from dstack.server.planning.volumes import mounts_of
from dstack.server.ssh_keys import KeyPair

TASK_EXISTS = 409
"""The agent's answer to a file of a task that it has."""


async def put_task(effect: PutTask, world: World, key: Key) -> Facts:
    """What the agent then says of the task is written by the host's watcher, in the order in which it happens."""
    asked = await _context(world, key)
    if mounts_of(asked.task.spec.volumes):
        try:
            mounts = await attach_volumes(world, key.id, asked.address)
        except VolumeNotAttached as error:
            raise _never(JobTerminationReason.VOLUME_ERROR, str(error)) from error
        asked = replace(asked, task=replace(asked.task, mounts=mounts))
    try:
        task = make_task(asked.task, asked.host, world.images)
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
    private = None if asked.node_key is None else asked.node_key.private
    uploads = read_uploads(world.database, asked.task.spec, asked.repo_id, asked.access, node_key=private)
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
    node_key: KeyPair | None


async def _context(world: World, key: Key) -> _Asked:
    """A few queries: the job and where it runs, its nodes, the project's secrets, its repository's credentials."""
    query = (
        select(JobRow, RunRow, ProjectRow.name, RepoRow.name, InstanceRow, FleetRow.spec)
        .join(RunRow, RunRow.id == JobRow.run_id)
        .join(ProjectRow, ProjectRow.id == JobRow.project_id)
        .join(InstanceRow, InstanceRow.id == JobRow.instance_id)
        .outerjoin(RepoRow, RepoRow.id == RunRow.repo_id)
        .outerjoin(FleetRow, FleetRow.id == InstanceRow.fleet_id)
        .where(JobRow.id == key.id)
    )
    async with world.database.session() as session:
        job, run, project_name, repo_name, instance, fleet = (await session.execute(query)).one()
        spec = JobSpec.model_validate_json(job.job_spec, extra="ignore")
        nodes = await _nodes(session, job)
        secrets = await _secrets(session, world, job)
        access = await read_access(session, world.encryption, spec, run.repo_id, run.user_id)
    if instance.address is None:
        raise Unreachable(f"Instance {instance.name} has no address")
    host = _host(job, spec, instance)
    node_key = None
    if len(nodes) > 1 and choose_executor(spec, host, world.images) != "simulated":
        node_key = await ensure_node_key(world, job)
    context = TaskContext(
        job_id=job.id,
        run_id=job.run_id,
        run_name=run.run_name,
        project_name=project_name,
        repo_name=repo_name,
        spec=spec,
        nodes=nodes,
        secrets=secrets,
        instance_env=json.loads(fleet)["configuration"].get("env", {}) if fleet else {},
        clone_url=access.clone_url,
        has_repo_credentials=access.credentials is not None,
        node_public_key=None if node_key is None else node_key.public.strip(),
        **_unspecified(json.loads(run.run_spec), spec.replica_group),
    )
    return _Asked(context, host, instance.address, run.repo_id, access, node_key)


def _unspecified(run_spec: Mapping[str, Any], replica_group: str) -> dict[str, Any]:
    """What the configuration says and the job spec of the wire has no place for."""
    configuration, profile = run_spec["configuration"], run_spec.get("profile") or {}
    groups = configuration.get("groups") or []
    python = next((one.get("python") for one in groups if one["name"] == replica_group), None)
    stop = configuration.get("stop_duration")
    stop = profile.get("stop_duration") if stop is None else stop
    return {
        "python": python or configuration.get("python"),
        "stop_seconds": UNLIMITED_S if stop == OFF else stop,
    }


def _host(job: JobRow, spec: JobSpec, instance: InstanceRow) -> Host:
    info: Mapping[str, Any] = json.loads(instance.agent_info or "{}")
    executors, backend = tuple(info.get("executors", ())), instance.backend or ""
    resources, total = _offer(instance).instance.resources, instance.total_blocks or 1
    if backend == LOCAL:
        return Host(backend, executors, False, job.gpus or 0, *upper_ends(spec, resources))
    share = share_on(resources, blocks=job.blocks, total_blocks=total)
    docker = parse_address(instance.address).details.get("docker") if instance.address else None
    return Host(backend, executors, job.blocks >= total, *share, is_without_docker=docker == "absent")


def _offer(instance: InstanceRow) -> InstanceOfferWithAvailability:
    if instance.offer is None:
        raise Unreachable(f"Instance {instance.name} is not chosen yet")
    return stored_offer(instance.offer)


async def _nodes(session: AsyncSession, job: JobRow) -> tuple[Node, ...]:
    """All of the job's replica, in the order of their numbers."""
    query = (
        select(
            JobRow.id, JobRow.gpus, JobRow.job_spec, InstanceRow.address, InstanceRow.backend, InstanceRow.offer
        )
        .join(InstanceRow, InstanceRow.id == JobRow.instance_id)
        .where(
            JobRow.run_id == job.run_id,
            JobRow.replica_num == job.replica_num,
            JobRow.submission_num == job.submission_num,
        )
        .order_by(JobRow.job_num)
    )
    rows = (await session.execute(query)).all()
    return tuple(_node(row, is_alone=len(rows) == 1) for row in rows)


def _node(row: Any, *, is_alone: bool) -> Node:
    if row.offer is None:
        raise Unreachable("The instance of one of the nodes is not chosen yet")
    where = json.loads(row.address or "{}")
    ip = where.get("internal_ip") or where.get("hostname") or ""
    if row.backend == LOCAL and not is_alone:
        ip = own_address(row.id)
    count = len(stored_offer(row.offer).instance.resources.gpus) if row.gpus is None else row.gpus
    return Node(ip, count) if is_alone else Node(ip, count, *_node_group(row.job_spec))


@lru_cache(maxsize=1024)
def _node_group(job_spec: str) -> tuple[int, str, int]:
    """Read once: each node of a task is told of all the others."""
    spec = json.loads(job_spec)
    return spec["node_group_index"], spec["node_group_name"], spec["node_group_job_index"]


async def _secrets(session: AsyncSession, world: World, job: JobRow) -> dict[str, str]:
    if "${{" not in job.job_spec:
        return {}
    rows = await session.scalars(select(SecretRow).where(SecretRow.project_id == job.project_id))
    return {row.name: str(world.encryption.decrypt(row.value, f"secrets.value:{row.id}")) for row in rows}


HANDLERS: Mapping[type[Effect], EffectHandler] = {
    PutTask: put_task,
    StopTask: stop_task,
    RemoveTask: remove_task,
}

"""What is known of a job submission, and what is recorded beside a change of its status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.agent.protocol import TaskState
from dstack.core.backends import LOCAL
from dstack.core.configurations.profiles import RetryEvent, StartupOrder, UtilizationPolicy
from dstack.core.events import EventTargetType
from dstack.core.instances import InstanceStatus
from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.core.runs import RunStatus
from dstack.server import clock
from dstack.server.db.engine import wake
from dstack.server.db.queries import loads, metrics
from dstack.server.db.tables import InstanceRow, JobMetricsPointRow, JobRow, JobVolumeRow, RunRow, VolumeRow
from dstack.server.hosts.connections import parse_address
from dstack.server.hosts.replicas import replica_address
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind, rank
from dstack.server.orchestrator.jobs import effects, rules
from dstack.server.orchestrator.jobs.policies import GpuSample, Policies
from dstack.server.orchestrator.jobs.rules import (
    Detach,
    InstanceFacts,
    JobSnapshot,
    Register,
    Release,
    StartDraining,
    TellOthers,
)
from dstack.server.orchestrator.sharing import wake_sharers
from dstack.server.planning.offers import stored_offer
from dstack.server.planning.placed import Held, placed_values
from dstack.server.planning.replicas import is_ready, takes_requests

_JOB = (
    select(JobRow, RunRow.run_spec, RunRow.status, RunRow.stop_requested, InstanceRow)
    .join(RunRow, RunRow.id == JobRow.run_id)
    .outerjoin(InstanceRow, InstanceRow.id == JobRow.instance_id)
    .where(JobRow.id == bindparam("job_id"))
)
"""Built once: putting it together takes longer than running it."""


class JobKind:
    """See `decision.ResourceKind`."""

    kind = Kind.JOB
    effects: Mapping[type[Effect], EffectHandler] = effects.HANDLERS

    async def load(self, session: AsyncSession, id: UUID) -> JobSnapshot | None:
        """One query; one more where nodes wait for each other, for a utilization policy, and for draining."""
        found = (await session.execute(_JOB, {"job_id": id})).first()
        if found is None:
            return None
        job, run_spec, run_status, stop_requested, instance = found
        spec = json.loads(job.job_spec)
        may_start = True
        if spec["jobs_per_replica"] > 1 and job.task_state is None and instance is not None:
            may_start = await _may_start(session, job, run_spec)
        policies = await _policies(session, job, spec, run_spec)
        snapshot = _snapshot(job, spec, instance, may_start, policies)
        if spec["service_port"] is None:
            return snapshot
        seen = await loads.read(session, job.run_id, clock.now()) if job.drain_started_at is not None else None
        return replace(
            snapshot,
            is_run_ending=run_status == RunStatus.TERMINATING.value or stop_requested is not None,
            is_replica=spec["job_num"] == 0 and takes_requests(run_spec, spec["replica_group"]),
            is_ready=is_ready(
                spec["probes"], job.probe_streaks, listens=job.healthy and job.service_address is not None
            ),
            registered=job.registered,
            drain_started_at=job.drain_started_at,
            in_flight=0 if seen is None else seen.replicas.get(job.service_address or "", 0),
        )

    def decide(self, snapshot: JobSnapshot, now: datetime) -> Decision[JobStatus]:
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: JobSnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """Only this row, the blocks of its instance, and one event."""
        values: dict[str, Any] = {}
        for write in decision.writes:
            match write:
                case Detach(capacity_error):
                    values |= _detached(capacity_error)
                    await _let_go_of_volumes(session, snapshot, now)
                    await session.execute(delete(JobVolumeRow).where(JobVolumeRow.job_id == snapshot.id))
                case Release():
                    values |= {"finished_at": now, "blocks": 0, "registered": False}
                    await _give_back(session, snapshot, now)
                    await _let_go_of_volumes(session, snapshot, now)
                case Register():
                    values["registered"] = True
                    wake(session, "routes")
                case StartDraining():
                    values |= {"registered": False, "drain_started_at": now}
                    wake(session, "routes")
                case TellOthers():
                    await _wake_others(session, snapshot)
        status = decision.status
        if status is not snapshot.status:
            if status is JobStatus.TERMINATING:
                values |= _ended(snapshot, decision)
            if status is JobStatus.RUNNING and snapshot.policies.is_watched:
                values["last_active_at"] = now
            if status in (JobStatus.PROVISIONING, JobStatus.RUNNING):
                values = await _placed(session, snapshot, is_running=status is JobStatus.RUNNING) | values
            await self._tell(session, snapshot, decision)
        if values:
            await session.execute(update(JobRow).where(JobRow.id == snapshot.id).values(**values))

    async def _tell(self, session: AsyncSession, job: JobSnapshot, decision: Decision[Any]) -> None:
        reason = decision.reason.value if decision.reason is not None else None
        text = told.change("Job", job.status.value, decision.status.value, reason=reason, message=decision.message)
        targets = [told.target(EventTargetType.JOB, job.id, job.job_name, job.project_id)]
        if job.instance is not None and job.status is JobStatus.SUBMITTED:
            instance = job.instance
            targets.append(told.target(EventTargetType.INSTANCE, instance.id, instance.name, job.project_id))
        await told.record(session, text, *targets)
        told.wake_followers(session, job.project_id, job.run_id)
        if JobStatus.RUNNING in (decision.status, job.status):
            wake(session, "routes")

    def priority(self, snapshot: JobSnapshot) -> int:
        return rank(snapshot.priority, has_begun=snapshot.instance is not None)


def _snapshot(
    job: JobRow, spec: dict[str, Any], instance: InstanceRow | None, may_start: bool, policies: Policies
) -> JobSnapshot:
    return JobSnapshot(
        id=job.id,
        run_id=job.run_id,
        project_id=job.project_id,
        job_name=job.job_name,
        status=JobStatus(job.status),
        submitted_at=job.submitted_at,
        instance=None if instance is None else _instance_facts(instance),
        capacity_error=job.capacity_error,
        waits_for_capacity_until=_waits_until(job, spec["retry"]),
        may_start=may_start,
        task=None if job.task_state is None else TaskState.from_json(json.loads(job.task_state)),
        terminate_requested=_reason(job.terminate_requested),
        terminate_message=job.termination_reason_message,
        termination_reason=_reason(job.termination_reason),
        put_at=job.provisioned_at,
        stop_sent_at=job.stop_sent_at,
        logs_stored=job.logs_stored,
        logs_error=job.logs_error,
        task_removed=job.task_removed,
        unreachable_since=job.unreachable_since,
        has_volumes=any("name" in mount for mount in spec.get("volumes") or ()),
        priority=job.priority,
        policies=policies,
    )


async def _policies(session: AsyncSession, job: JobRow, spec: dict[str, Any], run_spec: str) -> Policies:
    configuration = json.loads(run_spec)["configuration"]
    inactivity = configuration.get("inactivity_duration")
    asked = spec["utilization_policy"]
    usage: tuple[GpuSample, ...] = ()
    policy = None if asked is None else UtilizationPolicy.model_validate(asked, extra="ignore")
    if policy is not None and job.status == JobStatus.RUNNING.value:
        points = await metrics.list_window(session, job.id, policy.time_window)
        usage = tuple(_sample(point) for point in points)
    return Policies(
        is_watched=configuration["type"] == "dev-environment",
        inactivity_duration=None if inactivity is None else timedelta(seconds=inactivity),
        last_active_at=job.last_active_at,
        utilization=policy,
        usage=usage,
    )


def _sample(point: JobMetricsPointRow) -> GpuSample:
    at = datetime.fromtimestamp(point.timestamp_micro / 1_000_000, timezone.utc)
    return GpuSample(at, tuple(gpu["gpu_util_percent"] for gpu in json.loads(point.gpus)))


def _reason(text: str | None) -> JobTerminationReason | None:
    return None if text is None else JobTerminationReason(text)


def _instance_facts(instance: InstanceRow) -> InstanceFacts:
    offer = json.loads(instance.offer) if instance.offer else None
    return InstanceFacts(
        id=instance.id,
        name=instance.name,
        status=InstanceStatus(instance.status),
        has_agent=instance.address is not None and instance.agent_info is not None,
        is_spot=bool(offer and offer["instance"]["resources"]["spot"]),
        termination_reason=instance.termination_reason,
        termination_message=instance.termination_reason_message,
    )


def _waits_until(job: JobRow, retry: dict[str, Any] | None) -> datetime | None:
    if retry is None or RetryEvent.NO_CAPACITY.value not in retry["on_events"]:
        return None
    return job.submitted_at + timedelta(seconds=retry["duration"])


async def _may_start(session: AsyncSession, job: JobRow, run_spec: str) -> bool:
    """All nodes of the replica have an instance with an address, and those that come first run."""
    query = select(JobRow.job_num, JobRow.status, InstanceRow.address)
    query = query.outerjoin(InstanceRow, InstanceRow.id == JobRow.instance_id)
    same_attempt = (
        JobRow.run_id == job.run_id,
        JobRow.replica_num == job.replica_num,
        JobRow.submission_num == job.submission_num,
    )
    nodes = (await session.execute(query.where(*same_attempt))).all()
    if any(address is None for _, _, address in nodes):
        return False
    return _is_turn(job.job_num, {num: status for num, status, _ in nodes}, _startup_order(run_spec))


def _startup_order(run_spec: str) -> str:
    spec = json.loads(run_spec)
    order = spec["configuration"].get("startup_order") or (spec.get("profile") or {}).get("startup_order")
    return order or StartupOrder.ANY.value


def _is_turn(job_num: int, statuses: Mapping[int, str], order: str) -> bool:
    started = (JobStatus.RUNNING.value, JobStatus.TERMINATING.value, JobStatus.DONE.value)
    if order == StartupOrder.MASTER_FIRST.value and job_num != 0:
        return statuses.get(0) in started
    if order == StartupOrder.WORKERS_FIRST.value and job_num == 0:
        return all(status in started for num, status in statuses.items() if num != 0)
    return True


def _detached(capacity_error: str) -> dict[str, Any]:
    nowhere = {"instance_id": None, "blocks": 0, "gpus": None, "provisioning_data": None}
    return {**nowhere, "capacity_error": capacity_error}


def _ended(job: JobSnapshot, decision: Decision[Any]) -> dict[str, Any]:
    return {
        "termination_reason": decision.reason.value,
        "termination_reason_message": decision.message,
        "exit_status": job.task.exit_status if job.task is not None else None,
        "registered": False,
    }


async def _placed(session: AsyncSession, job: JobSnapshot, *, is_running: bool) -> dict[str, Any]:
    """Where the job runs; once it does, how it is reached, and that it takes traffic."""
    query = select(JobRow.job_spec, JobRow.blocks, JobRow.gpus, InstanceRow)
    query = query.join(InstanceRow, InstanceRow.id == JobRow.instance_id).where(JobRow.id == job.id)
    job_spec, blocks, gpus, instance = (await session.execute(query)).one()
    if instance.offer is None:
        return {}
    address = json.loads(instance.address or "{}")
    task = job.task if is_running else None
    ports = {port["container"]: port["host"] for port in (task.ports if task else ())}
    values = placed_values(
        instance.name,
        stored_offer(instance.offer),
        address,
        Held(blocks, instance.total_blocks or 1, gpus),
        is_local=instance.backend == LOCAL,
        volume_names=await _volume_names(session, job),
        task=None if task is None else _shown(task, ports),
    )
    spec = json.loads(job_spec)
    if is_running and spec["service_port"] is not None and spec["job_num"] == 0:
        port = spec["service_port"]
        where = parse_address(instance.address or "{}")
        values["service_address"] = replica_address(instance.id, where, ports.get(port, port))
        values["probe_streaks"] = json.dumps([0 for _ in spec["probes"]]) if spec["probes"] else None
        values["healthy"] = False
    return values


def _shown(task: TaskState, ports: Mapping[int, int]) -> dict[str, Any]:
    return {"ports": ports, "working_dir": task.working_dir, "username": task.username}


async def _give_back(session: AsyncSession, job: JobSnapshot, now: datetime) -> None:
    """The blocks that the job held; they are its own, so nobody else has given them back."""
    if job.instance is None:
        return
    held = select(JobRow.blocks).where(JobRow.id == job.id).scalar_subquery()
    await session.execute(
        update(InstanceRow)
        .where(InstanceRow.id == job.instance.id)
        .values(busy_blocks=InstanceRow.busy_blocks - held, last_job_processed_at=now)
    )
    await wake_sharers(session, job.instance.id)


async def _volume_names(session: AsyncSession, job: JobSnapshot) -> list[str]:
    if not job.has_volumes:
        return []
    query = select(VolumeRow.name).join(JobVolumeRow, JobVolumeRow.volume_id == VolumeRow.id)
    return list(
        await session.scalars(query.where(JobVolumeRow.job_id == job.id).distinct().order_by(VolumeRow.name))
    )


async def _let_go_of_volumes(session: AsyncSession, job: JobSnapshot, now: datetime) -> None:
    """Nobody has to ask for them: they are detached once no unfinished job on the instance uses them."""
    if not job.has_volumes:
        return
    mine = select(JobVolumeRow.volume_id).where(JobVolumeRow.job_id == job.id)
    ids = list(await session.scalars(mine.distinct()))
    await session.execute(update(VolumeRow).where(VolumeRow.id.in_(ids)).values(last_job_processed_at=now))
    wake(session, *(f"volume:{id}" for id in ids))


async def _wake_others(session: AsyncSession, job: JobSnapshot) -> None:
    """Those whose tasks are not on their hosts yet: nobody else waits for anybody."""
    waiting = JobRow.status.in_([JobStatus.SUBMITTED.value, JobStatus.PROVISIONING.value])
    which = (JobRow.run_id == job.run_id, JobRow.id != job.id, waiting, JobRow.provisioned_at.is_(None))
    wake(session, *(f"job:{id}" for id in await session.scalars(select(JobRow.id).where(*which))))


KIND = JobKind()

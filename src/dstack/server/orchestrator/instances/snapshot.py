"""What is known of an instance, and what is recorded beside a change of its status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.backends import LOCAL
from dstack.core.events import EventTargetType
from dstack.core.instances import InstanceStatus, InstanceTerminationReason
from dstack.core.jobs import JobStatus
from dstack.server.db.tables import FleetRow, InstanceRow, JobRow
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind, rank
from dstack.server.orchestrator.instances import effects, rules
from dstack.server.orchestrator.instances.rules import InstanceSnapshot
from dstack.server.orchestrator.sharing import wake_sharers

FINISHED_JOBS = tuple(status.value for status in JobStatus if status.is_finished())

# Built once: putting a statement together takes longer than running it.
_INSTANCE = select(InstanceRow).where(InstanceRow.id == bindparam("instance_id"))
_UNFINISHED_JOBS = select(JobRow.id).where(
    JobRow.instance_id == bindparam("instance_id"), JobRow.status.not_in(FINISHED_JOBS)
)


class InstanceKind:
    """See `decision.ResourceKind`."""

    kind = Kind.INSTANCE
    effects: Mapping[type[Effect], EffectHandler] = effects.HANDLERS

    async def load(self, session: AsyncSession, id: UUID) -> InstanceSnapshot | None:
        """Two queries; two more for one that is given up when it has been idle for long."""
        row = await session.scalar(_INSTANCE, {"instance_id": id})
        if row is None:
            return None
        jobs = tuple(await session.scalars(_UNFINISHED_JOBS, {"instance_id": id}))
        return _snapshot(row, jobs, may_shrink=await _may_shrink(session, row))

    def decide(self, snapshot: InstanceSnapshot, now: datetime) -> Decision[InstanceStatus]:
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: InstanceSnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """This row and one event."""
        status = decision.status
        if status is snapshot.status:
            return
        values: dict[str, Any] = {}
        if status is InstanceStatus.TERMINATING:
            values = {
                "termination_reason": decision.reason.value,
                "termination_reason_message": decision.message,
                "provisioning_deadline": now + rules.termination_limit(snapshot),
            }
        if status is InstanceStatus.TERMINATED:
            values = {"finished_at": now, "deleted": True, "watcher": None, "watcher_until": None}
        if status in (InstanceStatus.IDLE, InstanceStatus.BUSY) and snapshot.provisioning_deadline is not None:
            values = {"started_at": now, "provisioning_deadline": None}
        if values:
            await session.execute(update(InstanceRow).where(InstanceRow.id == snapshot.id).values(**values))
        if status is InstanceStatus.PROVISIONING:
            await _give_whole(session, snapshot.id)
        if status is InstanceStatus.IDLE:
            await wake_sharers(session, snapshot.id)
        reason = decision.reason.value if decision.reason is not None else None
        text = told.change(
            "Instance", snapshot.status.value, status.value, reason=reason, message=decision.message
        )
        target = told.target(EventTargetType.INSTANCE, snapshot.id, snapshot.name, snapshot.project_id)
        await told.record(session, text, target)

    def priority(self, snapshot: InstanceSnapshot) -> int:
        """Hosts that answer go before those that are still to be reached."""
        return rank(0, has_begun=snapshot.has_agent and snapshot.unreachable_since is None)


def _snapshot(row: InstanceRow, jobs: tuple[UUID, ...], *, may_shrink: bool) -> InstanceSnapshot:
    requested = row.terminate_requested
    idle = row.idle_duration
    is_leaving = row.status == InstanceStatus.TERMINATING.value
    return InstanceSnapshot(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        status=InstanceStatus(row.status),
        created_at=row.created_at,
        fleet_id=row.fleet_id,
        is_local=row.backend == LOCAL,
        is_ssh=row.ssh_target is not None,
        is_outdated=row.agent_info is not None and json.loads(row.agent_info).get("is_outdated", False),
        last_error=row.last_error,
        wake_at=row.wake_at,
        has_failed=row.attempts > 0,
        has_offer=row.offer is not None,
        has_address=row.address is not None,
        has_agent=row.agent_info is not None,
        busy_blocks=row.busy_blocks,
        job_ids=jobs,
        idle_duration=None if idle is None or idle < 0 else timedelta(seconds=idle),
        last_job_processed_at=row.last_job_processed_at,
        may_shrink=may_shrink,
        terminate_requested=None if requested is None else InstanceTerminationReason(requested),
        terminate_message=row.termination_reason_message,
        termination_deadline=row.provisioning_deadline if is_leaving else None,
        provisioning_deadline=None if is_leaving else row.provisioning_deadline,
        unreachable_since=row.unreachable_since,
        is_gone=row.finished_at is not None,
    )


async def _give_whole(session: AsyncSession, id: UUID) -> None:
    """The job that it was made for has all of it: into how many blocks that is split shows with the offer."""
    columns = (InstanceRow.busy_blocks, InstanceRow.total_blocks, InstanceRow.backend)
    busy, total, backend = (
        await session.execute(select(*columns).where(InstanceRow.id == id).with_for_update())
    ).one()
    if not busy or busy == total or backend == LOCAL:
        return
    holders = (JobRow.instance_id == id, JobRow.status.not_in(FINISHED_JOBS))
    await session.execute(update(JobRow).where(*holders).values(blocks=total))
    await session.execute(update(InstanceRow).where(InstanceRow.id == id).values(busy_blocks=total))


async def _may_shrink(session: AsyncSession, row: InstanceRow) -> bool:
    if row.idle_duration is None or row.idle_duration < 0:
        return False
    fleet_spec = await session.scalar(select(FleetRow.spec).where(FleetRow.id == row.fleet_id))
    if fleet_spec is None:
        return True
    nodes = json.loads(fleet_spec)["configuration"].get("nodes")
    if nodes is None:
        return True
    gone = (InstanceStatus.TERMINATING.value, InstanceStatus.TERMINATED.value)
    query = select(func.count()).select_from(InstanceRow)
    query = query.where(InstanceRow.fleet_id == row.fleet_id, InstanceRow.status.not_in(gone))
    count = await session.scalar(query) or 0
    return count > int(nodes["min"])


KIND = InstanceKind()

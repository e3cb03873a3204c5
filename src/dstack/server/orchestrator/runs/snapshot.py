"""What is known of a run, and what is recorded beside a change of its status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.configurations.profiles import Retry, StopCriteria
from dstack.core.cron import CronExpression
from dstack.core.events import EventTargetType
from dstack.core.images import Images
from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.core.runs import RunStatus, RunTerminationReason
from dstack.server import clock
from dstack.server.db.engine import wake
from dstack.server.db.queries import loads
from dstack.server.db.tables import JobRow, RunRow
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind, rank
from dstack.server.orchestrator.runs import rules, writes
from dstack.server.orchestrator.runs.facts import GroupFacts, Load, RunSnapshot, SubmissionFacts
from dstack.server.planning.replicas import ReplicaGroupPlan, groups_of

J = JobRow
_COLUMNS = (
    J.id,
    J.replica_num,
    J.job_num,
    J.submission_num,
    J.status,
    J.submitted_at,
    J.last_processed_at,
    J.termination_reason,
    J.terminate_requested,
    J.provisioned_at,
    J.job_spec,
    J.deployment_num,
    J.registered,
    J.finished_at,
    J.exit_status,
    J.termination_reason_message,
)
# Built once: putting a statement together takes longer than running it.
_RUN = select(RunRow).where(RunRow.id == bindparam("run_id"))
_JOBS = (
    select(*_COLUMNS).where(J.run_id == bindparam("run_id")).order_by(J.replica_num, J.job_num, J.submission_num)
)


class RunKind:
    """See `decision.ResourceKind`. A run has no effects: it touches the database alone."""

    kind = Kind.RUN
    effects: Mapping[type[Effect], EffectHandler] = {}

    def __init__(self, images: Images) -> None:
        self._images = images

    async def load(self, session: AsyncSession, id: UUID) -> RunSnapshot | None:
        """Two queries; one more for a service that scales with its requests."""
        run = await session.scalar(_RUN, {"run_id": id})
        if run is None:
            return None
        jobs = (await session.execute(_JOBS, {"run_id": id})).mappings().all()
        groups = _groups(run)
        scales = any(group.scaling is not None for group in groups)
        seen = await loads.read(session, id, clock.now()) if scales else None
        load = None if seen is None else _load(seen)
        return _snapshot(run, jobs, groups, load)

    def decide(self, snapshot: RunSnapshot, now: datetime) -> Decision[RunStatus]:
        if snapshot.schedule:
            moments = [CronExpression.parse(text).next_after(now) for text in snapshot.schedule]
            known = [moment for moment in moments if moment is not None]
            snapshot = replace(snapshot, next_trigger_after=min(known, default=None))
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: RunSnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """This row, intent for its jobs, new submissions, and one event.

        Raises StaleSnapshot when a user has changed the run since.
        """
        values = await writes.apply(session, snapshot, decision.writes, now, self._images)
        values |= _status_values(snapshot, decision, now)
        if values:
            told.wake_followers(session, snapshot.project_id, snapshot.id)
            await session.execute(update(RunRow).where(RunRow.id == snapshot.id).values(**values))
        if decision.status is not snapshot.status:
            await self._tell(session, snapshot, decision)

    async def _tell(self, session: AsyncSession, run: RunSnapshot, decision: Decision[Any]) -> None:
        reason = decision.reason.value if decision.reason is not None else None
        text = told.change("Run", run.status.value, decision.status.value, reason=reason, message=decision.message)
        target = told.target(EventTargetType.RUN, run.id, run.run_name, run.project_id)
        await told.record(session, text, target)
        told.wake_followers(session, run.project_id, run.id)
        if run.is_service:
            wake(session, "routes")

    def priority(self, snapshot: RunSnapshot) -> int:
        """Once it has jobs it is told as soon as they are: its passes are short, and one serves them all."""
        return rank(snapshot.priority, has_begun=True)


def _load(seen: loads.Seen) -> Load:
    windows = seen.windows.items()
    return Load(
        seen.since,
        seen.requests,
        seen.in_flight,
        mean_in_flight={window: counts.in_flight / window for window, counts in windows},
        waits={window: counts.waited / counts.answered for window, counts in windows if counts.answered},
    )


def _status_values(run: RunSnapshot, decision: Decision[Any], now: datetime) -> dict[str, Any]:
    """What goes with a change of the status."""
    values: dict[str, Any] = {}
    status, was = decision.status, run.status
    if status is RunStatus.TERMINATING and was is not status:
        values |= {"termination_reason": decision.reason.value, "termination_message": decision.message}
    if status is RunStatus.PENDING and was is RunStatus.TERMINATING:
        values |= {"termination_reason": None, "termination_message": None}
    if status is RunStatus.PENDING and was is not status:
        values["fleet_id"] = None
    if status.is_finished():
        values["finished_at"] = now
    return values


def _groups(run: RunRow) -> tuple[GroupFacts, ...]:
    """With the targets on record, as far as the present spec allows for them."""
    if run.service_spec is None:
        return ()
    targets: Mapping[str, int] = json.loads(run.replica_targets or "{}")
    return tuple(_group(group, targets.get(group.name)) for group in groups_of(json.loads(run.run_spec)))


def _group(group: ReplicaGroupPlan, target: int | None) -> GroupFacts:
    wanted = group.low if target is None else min(max(target, group.low), group.high)
    return GroupFacts(group.name, wanted, group.low, group.high, group.scaling)


def _snapshot(
    run: RunRow, rows: Sequence[RowMapping], groups: tuple[GroupFacts, ...], load: Load | None
) -> RunSnapshot:
    spec = json.loads(run.run_spec)
    configuration, profile = spec["configuration"], spec.get("profile") or {}
    stop_criteria = configuration.get("stop_criteria") or profile.get("stop_criteria")
    schedule = configuration.get("schedule") or profile.get("schedule")
    return RunSnapshot(
        id=run.id,
        project_id=run.project_id,
        run_name=run.run_name,
        status=RunStatus(run.status),
        submitted_at=run.submitted_at,
        jobs=latest_submissions(rows),
        groups=groups,
        deployment_num=run.deployment_num,
        is_rolling=run.previous_run_spec is not None,
        load=load,
        master_done_ends=stop_criteria == StopCriteria.MASTER_DONE.value,
        stop_requested=_reason(run.stop_requested),
        termination_reason=_reason(run.termination_reason),
        gateway_error=run.gateway_error,
        resubmission_attempt=run.resubmission_attempt,
        next_triggered_at=run.next_triggered_at,
        schedule=tuple(schedule["cron"]) if schedule else (),
        priority=run.priority,
    )


def _reason(text: str | None) -> RunTerminationReason | None:
    return None if text is None else RunTerminationReason(text)


def latest_submissions(rows: Sequence[RowMapping]) -> tuple[SubmissionFacts, ...]:
    """`rows`: all submissions, those of a job in their order."""
    latest: dict[tuple[int, int], SubmissionFacts] = {}
    for row in rows:
        place = (row["replica_num"], row["job_num"])
        before = latest.get(place)
        provisioned_at = None if before is None else before.last_provisioned_at
        if row["provisioned_at"] is not None:
            provisioned_at = row["last_processed_at"]
        latest[place] = _facts(row, provisioned_at)
    return tuple(latest.values())


def _facts(row: RowMapping, provisioned_at: datetime | None) -> SubmissionFacts:
    spec = json.loads(row["job_spec"])
    retry = spec["retry"]
    reason = row["termination_reason"]
    return SubmissionFacts(
        id=row["id"],
        replica_num=row["replica_num"],
        job_num=row["job_num"],
        submission_num=row["submission_num"],
        status=JobStatus(row["status"]),
        submitted_at=row["submitted_at"],
        last_processed_at=row["last_processed_at"],
        reason=None if reason is None else JobTerminationReason(reason),
        terminate_requested=row["terminate_requested"] is not None,
        retry=None if retry is None else Retry.model_validate(retry, extra="ignore"),
        last_provisioned_at=provisioned_at,
        group=spec["replica_group"],
        deployment_num=row["deployment_num"],
        registered=row["registered"],
        finished_at=row["finished_at"],
        message=_why(row),
    )


def _why(row: RowMapping) -> str | None:
    if row["exit_status"] is not None:
        return f"exit status {row['exit_status']}"
    message: str | None = row["termination_reason_message"]
    return message

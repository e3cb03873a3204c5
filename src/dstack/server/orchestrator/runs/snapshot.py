"""What is known of a run, and what is recorded beside a change of its status."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.configurations.profiles import Retry, StopCriteria
from dstack.core.cron import CronExpression
from dstack.core.events import EventTargetType
from dstack.core.job_specs import make_job_specs
from dstack.core.jobs import JobSpec, JobStatus, JobTerminationReason
from dstack.core.runs import RunSpec, RunStatus, RunTerminationReason
from dstack.server.db.engine import wake
from dstack.server.db.tables import JobRow, RunRow
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind
from dstack.server.orchestrator.runs import rules
from dstack.server.orchestrator.runs.rules import (
    CountAttempt,
    RunSnapshot,
    SetTrigger,
    SubmissionFacts,
    SubmitReplicas,
    TerminateJobs,
)
from dstack.server.planning.new_run import job_values

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
)
FINISHED = tuple(status.value for status in JobStatus if status.is_finished())


class RunKind:
    """See `decision.ResourceKind`. A run has no effects: it touches the database alone."""

    kind = Kind.RUN
    effects: Mapping[type[Effect], EffectHandler] = {}

    async def load(self, session: AsyncSession, id: UUID) -> RunSnapshot | None:
        """Two queries."""
        run = await session.scalar(select(RunRow).where(RunRow.id == id))
        if run is None:
            return None
        query = select(*_COLUMNS).where(J.run_id == id).order_by(J.replica_num, J.job_num, J.submission_num)
        jobs = (await session.execute(query)).mappings().all()
        return _snapshot(run, jobs)

    def decide(self, snapshot: RunSnapshot, now: datetime) -> Decision[RunStatus]:
        if snapshot.schedule:
            moments = [CronExpression.parse(text).next_after(now) for text in snapshot.schedule]
            known = [moment for moment in moments if moment is not None]
            snapshot = replace(snapshot, next_trigger_after=min(known, default=None))
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: RunSnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """This row, intent for its jobs, new submissions, and one event."""
        values: dict[str, Any] = {}
        for write in decision.writes:
            match write:
                case TerminateJobs(ids, reason):
                    await _ask_to_end(session, ids, reason)
                case SubmitReplicas(replica_nums):
                    await _submit(session, snapshot, replica_nums, now)
                case CountAttempt(attempt):
                    values["resubmission_attempt"] = attempt
                case SetTrigger(at):
                    values["next_triggered_at"] = at
        status = decision.status
        if status is RunStatus.TERMINATING and snapshot.status is not status:
            values |= {
                "termination_reason": decision.reason.value,
                "termination_message": decision.message,
            }
        if status is RunStatus.PENDING and snapshot.status is RunStatus.TERMINATING:
            values |= {"termination_reason": None, "termination_message": None}
        if status is RunStatus.PENDING and snapshot.status is not status:
            values["fleet_id"] = None
        if status.is_finished():
            values["finished_at"] = now
        if values:
            await session.execute(update(RunRow).where(RunRow.id == snapshot.id).values(**values))
        if status is not snapshot.status:
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
        return snapshot.priority


def _snapshot(run: RunRow, rows: Sequence[RowMapping]) -> RunSnapshot:
    spec = json.loads(run.run_spec)
    configuration, profile = spec["configuration"], spec.get("profile") or {}
    stop_criteria = configuration.get("stop_criteria") or profile.get("stop_criteria")
    schedule = configuration.get("schedule") or profile.get("schedule")
    is_service = configuration["type"] == "service"
    return RunSnapshot(
        id=run.id,
        project_id=run.project_id,
        run_name=run.run_name,
        status=RunStatus(run.status),
        submitted_at=run.submitted_at,
        jobs=latest_submissions(rows),
        desired_replicas=run.desired_replica_count if is_service else 1,
        is_service=is_service,
        master_done_ends=stop_criteria == StopCriteria.MASTER_DONE.value,
        stop_requested=_reason(run.stop_requested),
        termination_reason=_reason(run.termination_reason),
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
    retry = json.loads(row["job_spec"])["retry"]
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
    )


async def _ask_to_end(session: AsyncSession, ids: Sequence[UUID], reason: JobTerminationReason) -> None:
    """Intent; a reason that a job has already stays."""
    which = (J.id.in_(ids), J.terminate_requested.is_(None), J.status.not_in(FINISHED))
    await session.execute(update(JobRow).where(*which).values(terminate_requested=reason.value))


async def _submit(session: AsyncSession, run: RunSnapshot, replica_nums: Sequence[int], now: datetime) -> None:
    """A replica that had jobs gets the same ones again; one that is new gets them from the run spec."""
    row = (await session.execute(select(RunRow.run_spec, RunRow.deployment_num).where(RunRow.id == run.id))).one()
    known = {(job.replica_num, job.job_num): job for job in run.jobs}
    query = select(J.id, J.job_spec).where(J.id.in_([job.id for job in run.jobs]))
    texts = {id: text for id, text in (await session.execute(query))}
    values: list[dict[str, Any]] = []
    for replica_num in replica_nums:
        before = [job for place, job in known.items() if place[0] == replica_num]
        if before:
            specs = [JobSpec.model_validate_json(texts[job.id], extra="ignore") for job in before]
        else:
            spec = RunSpec.model_validate_json(row.run_spec, extra="ignore")
            specs = make_job_specs(spec, run_name=run.run_name, replica_num=replica_num)
        values += job_values(
            [(uuid.uuid4(), spec) for spec in specs],
            run_id=run.id,
            project_id=run.project_id,
            now=now,
            priority=run.priority,
            submission_num=max((job.submission_num + 1 for job in before), default=0),
            deployment_num=row.deployment_num,
        )
    if values:
        await session.execute(insert(JobRow), values)
        wake(session, *(f"job:{value['id']}" for value in values), f"placement:{run.project_id}")


KIND = RunKind()

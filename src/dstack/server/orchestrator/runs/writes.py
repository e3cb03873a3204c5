"""What the rules of runs may record beside a change of the status: intent for jobs, submissions, deployments."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.events import EventTargetType
from dstack.core.images import Images
from dstack.core.job_specs import make_job_specs
from dstack.core.jobs import JobSpec, JobStatus, JobTerminationReason
from dstack.core.runs import RunSpec
from dstack.server.db.engine import wake
from dstack.server.db.tables import JobRow, RunRow
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import StaleSnapshot
from dstack.server.orchestrator.runs.facts import (
    AddReplica,
    CountAttempt,
    EndRollout,
    RollBack,
    RunSnapshot,
    SetTargets,
    SetTrigger,
    StartDeployment,
    SubmitReplicas,
    TerminateJobs,
)
from dstack.server.planning.new_run import job_values
from dstack.server.planning.replicas import same_jobs

J = JobRow
_OF_A_DEPLOYMENT = (AddReplica, EndRollout, RollBack, SetTargets, StartDeployment)
"""Hold only for the deployment that they were decided for."""
FINISHED = tuple(status.value for status in JobStatus if status.is_finished())


async def apply(
    session: AsyncSession, run: RunSnapshot, wanted: Sequence[Any], now: datetime, images: Images
) -> dict[str, Any]:
    """Returns the columns of the run's own row. `images`: of new jobs that name none.

    Raises StaleSnapshot when a user has changed the run since.
    """
    if any(isinstance(write, _OF_A_DEPLOYMENT) for write in wanted):
        await _assert_not_updated(session, run)
    values: dict[str, Any] = {}
    for write in wanted:
        match write:
            case StartDeployment():
                run = replace(run, deployment_num=run.deployment_num + 1)
                values["deployment_num"] = run.deployment_num
            case TerminateJobs(ids, reason):
                await _ask_to_end(session, ids, reason)
            case SubmitReplicas(replica_nums):
                await _submit(session, run, replica_nums, now, images)
            case AddReplica():
                await _add(session, run, write, now, images)
            case RollBack(message):
                values |= await _roll_back(session, run, message, images)
            case _:
                values |= _own_values(write)
    return values


def _own_values(write: CountAttempt | SetTrigger | SetTargets | EndRollout) -> dict[str, Any]:
    match write:
        case CountAttempt(attempt):
            return {"resubmission_attempt": attempt}
        case SetTrigger(at):
            return {"next_triggered_at": at}
        case SetTargets(targets):
            total = sum(target for _, target in targets)
            return {"replica_targets": json.dumps(dict(targets)), "desired_replica_count": total}
        case EndRollout():
            return {"previous_run_spec": None}


async def _assert_not_updated(session: AsyncSession, run: RunSnapshot) -> None:
    if await session.scalar(select(RunRow.deployment_num).where(RunRow.id == run.id)) != run.deployment_num:
        raise StaleSnapshot


async def _ask_to_end(session: AsyncSession, ids: Sequence[UUID], reason: JobTerminationReason) -> None:
    """Intent; a reason that a job has already stays."""
    which = (J.id.in_(ids), J.terminate_requested.is_(None), J.status.not_in(FINISHED))
    await session.execute(update(JobRow).where(*which).values(terminate_requested=reason.value))


async def _submit(
    session: AsyncSession, run: RunSnapshot, replica_nums: Sequence[int], now: datetime, images: Images
) -> None:
    """A replica that had jobs gets the same ones again; one that is new gets them from the run spec."""
    query = select(J.id, J.job_spec).where(
        J.id.in_([job.id for job in run.jobs if job.replica_num in replica_nums])
    )
    texts = {id: text for id, text in (await session.execute(query))}
    for replica_num in replica_nums:
        before = [job for job in run.jobs if job.replica_num == replica_num]
        specs = [JobSpec.model_validate_json(texts[job.id], extra="ignore") for job in before]
        if not before:
            spec = await _spec(session, run)
            specs = make_job_specs(spec, run_name=run.run_name, images=images, replica_num=replica_num)
        deployment_num = before[0].deployment_num if before else run.deployment_num
        await _insert(session, run, specs, now, deployment_num=deployment_num)


async def _add(session: AsyncSession, run: RunSnapshot, added: AddReplica, now: datetime, images: Images) -> None:
    """A replica as the run is now; its number may have been another one's before."""
    spec = await _spec(session, run)
    specs = make_job_specs(
        spec, run_name=run.run_name, images=images, replica_num=added.replica_num, replica_group=added.group
    )
    await _insert(session, run, specs, now, deployment_num=run.deployment_num)


async def _spec(session: AsyncSession, run: RunSnapshot) -> RunSpec:
    text = await session.scalar(select(RunRow.run_spec).where(RunRow.id == run.id))
    return RunSpec.model_validate_json(text or "", extra="ignore")


async def _insert(
    session: AsyncSession, run: RunSnapshot, specs: Sequence[JobSpec], now: datetime, *, deployment_num: int
) -> None:
    """The next submission of each of these jobs, all of one replica."""
    before = [job.submission_num for job in run.jobs if job.replica_num == specs[0].replica_num]
    values = job_values(
        [(uuid.uuid4(), spec) for spec in specs],
        run_id=run.id,
        project_id=run.project_id,
        now=now,
        priority=run.priority,
        submission_num=max((number + 1 for number in before), default=0),
        deployment_num=deployment_num,
    )
    await session.execute(insert(JobRow), values)
    wake(session, *(f"job:{value['id']}" for value in values), f"placement:{run.project_id}")


async def _roll_back(session: AsyncSession, run: RunSnapshot, message: str, images: Images) -> dict[str, Any]:
    """What worked becomes the next deployment, which the replicas that run it already are of."""
    text = await session.scalar(select(RunRow.previous_run_spec).where(RunRow.id == run.id))
    assert text is not None
    spec = RunSpec.model_validate_json(text, extra="ignore")
    jobs = select(J.id, J.job_spec).where(J.run_id == run.id, J.status.not_in(FINISHED))
    rows = [(id, job_spec) for id, job_spec in await session.execute(jobs)]
    same = same_jobs(rows, spec, run_name=run.run_name, images=images)
    number = run.deployment_num + 1
    await session.execute(update(JobRow).where(J.id.in_(same)).values(deployment_num=number))
    target = told.target(EventTargetType.RUN, run.id, run.run_name, run.project_id)
    await told.record(session, message, target)
    return {
        "run_spec": text,
        "previous_run_spec": None,
        "deployment_num": number,
        "priority": spec.configuration.priority or 0,
        "rollout_error": message,
    }

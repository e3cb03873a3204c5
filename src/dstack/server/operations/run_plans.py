"""Planning and submitting runs: the effective spec, where it could run, and the rows of a new run."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.canonical import dump_json
from dstack.core.configurations.mounts import VolumeMountPoint
from dstack.core.configurations.service import ServiceConfiguration
from dstack.core.cron import next_trigger
from dstack.core.diff import can_update_run, changed_run_fields
from dstack.core.errors import InvalidRequest, RepoNotExists, ResourceNotExists
from dstack.core.job_specs import effective_run_spec, make_job_specs, merge_profile
from dstack.core.jobs import JobSpec
from dstack.core.names import check_resource_name, random_name
from dstack.core.plans import ApplyAction
from dstack.core.repos import VIRTUAL_REPO_ID, RepoType
from dstack.core.runs import Run, RunPlan, RunSpec, RunStatus
from dstack.core.schemas.runs import ApplyRunPlanRequest, GetRunPlanRequest
from dstack.server import clock, events
from dstack.server.db.engine import wake
from dstack.server.db.locks import one_at_a_time
from dstack.server.db.queries import runs as queries
from dstack.server.db.queries import volumes as volume_queries
from dstack.server.db.tables import FileArchiveRow, JobRow, RepoRow, RunRow, UserRow
from dstack.server.operations import offers, run_answers, runs, service_gateways
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.repos import find as find_repo
from dstack.server.operations.run_checks import check_run
from dstack.server.planning.new_run import OnGateway, job_values, service_spec
from dstack.server.planning.offers import View
from dstack.server.planning.replicas import same_jobs
from dstack.server.planning.volumes import mounts_of

SHOWN_NAME = "dry-run"
"""Stands in plans for a name that is not chosen yet."""


async def get_plan(ctx: Context, at: InProject, wanted: GetRunPlanRequest) -> RunPlan:
    """What applying would do and where it could run; nothing is stored."""
    async with ctx.database.session() as session:
        effective = await _effective(ctx, session, at, wanted.run_spec)
        current = await runs.find_current(ctx, session, at.project.id, effective.run_name)
    specs = _specs_of_replica(ctx, effective, effective.run_name or SHOWN_NAME, 0)
    market = await offers.load_market(ctx.database, ctx.backends, at.project.id)
    view = View(full=wanted.full_offers, unallocated=wanted.unallocated_resources)
    return RunPlan(
        project_name=at.project.name,
        user=at.caller.username,
        run_spec=wanted.run_spec,
        effective_run_spec=effective,
        job_plans=[
            offers.job_plan(
                spec,
                offers.job_offers(
                    market, offers.wish_of(effective, spec, view=view, for_offers_only=wanted.for_offers_only)
                ),
                max_offers=wanted.max_offers,
                reverse=wanted.reverse_offers,
            )
            for spec in specs
        ],
        current_resource=current,
        action=_action(ctx, current, effective),
    )


async def apply(ctx: Context, at: InProject, wanted: ApplyRunPlanRequest) -> run_answers.Document:
    """Submits a run, or changes the one that is there in place."""
    async with ctx.database.session() as session:
        spec = await _effective(ctx, session, at, wanted.plan.run_spec)
    async with ctx.database.transaction() as session:
        # One at a time in a project, so that a name is given to one run only.
        await one_at_a_time(session, f"names of runs:{at.project.id}")
        current = await runs.find_current(ctx, session, at.project.id, spec.run_name)
        if not wanted.force:
            _assert_unchanged(current, wanted.plan.current_resource, spec)
        if current is not None and not current.status.is_finished():
            run_id = await _update(ctx, session, at, current, spec)
        else:
            run_id = await _submit(ctx, session, at, spec, current)
    async with ctx.database.session() as session:
        row = await queries.find_by_id(session, at.project.id, run_id)
        assert row is not None
        return (await run_answers.load(session, [row], ssh=ctx.ssh))[0]


async def _effective(ctx: Context, session: AsyncSession, at: InProject, spec: RunSpec) -> RunSpec:
    """With all defaults filled in. Raises InvalidRequest for what cannot be run on this server."""
    key = spec.ssh_key_pub or await session.scalar(
        select(UserRow.ssh_public_key).where(UserRow.id == at.caller.user_id)
    )
    effective = effective_run_spec(spec, run_name=None, ssh_key_pub=key)
    if effective.run_name is not None:
        try:
            check_resource_name(effective.run_name)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
    check_run(effective, ctx.settings)
    configuration = effective.configuration
    if isinstance(configuration, ServiceConfiguration):
        await service_gateways.choose(session, at, configuration, ctx.settings)
    await _check_volumes(ctx, session, at, effective)
    return effective


async def _check_volumes(ctx: Context, session: AsyncSession, at: InProject, spec: RunSpec) -> None:
    """Raises ResourceNotExists for a name that no volume has."""
    if not any(isinstance(mount, VolumeMountPoint) for mount in spec.configuration.volumes):
        return
    rows = await volume_queries.list_of_project(session, at.project.id)
    known = {str(row["name"]) for row in rows}
    for job in _specs_of_replica(ctx, spec, spec.run_name or SHOWN_NAME, 0):
        for mount in mounts_of(job.volumes):
            unknown = next((name for name in mount.names if name not in known), None)
            if unknown is not None:
                raise ResourceNotExists(f"Volume {unknown!r} does not exist in project {at.project.name!r}")


def _replica_counts(spec: RunSpec) -> list[tuple[str | None, int]]:
    """For each group of replicas (None: no groups) how many there are at first."""
    configuration = spec.configuration
    if not isinstance(configuration, ServiceConfiguration):
        return [(None, 1)]
    if configuration.groups:
        return [(group.name, group.replicas.min or 0) for group in configuration.groups]
    count = 1 if configuration.replicas is None else configuration.replicas.min
    return [(None, count or 0)]


def _all_specs(ctx: Context, spec: RunSpec, run_name: str) -> list[JobSpec]:
    specs: list[JobSpec] = []
    replica = 0
    for group, count in _replica_counts(spec):
        for _ in range(count):
            specs += _replica_specs(ctx, spec, run_name, replica, group)
            replica += 1
    return specs


def _specs_of_replica(ctx: Context, spec: RunSpec, run_name: str, replica_num: int) -> list[JobSpec]:
    """One of each group: what a plan shows."""
    return [
        job
        for group, _ in _replica_counts(spec)
        for job in _replica_specs(ctx, spec, run_name, replica_num, group)
    ]


def _replica_specs(
    ctx: Context, spec: RunSpec, run_name: str, replica_num: int, group: str | None
) -> list[JobSpec]:
    images = ctx.settings.images
    return make_job_specs(spec, run_name=run_name, images=images, replica_num=replica_num, replica_group=group)


def _action(ctx: Context, current: Run | None, spec: RunSpec) -> ApplyAction:
    if current is None or current.status.is_finished() or not _can_update(ctx, current, spec):
        return ApplyAction.CREATE
    return ApplyAction.UPDATE


def _can_update(ctx: Context, current: Run, spec: RunSpec) -> bool:
    """Whether nothing differs that a running job would have to be restarted for; replicas of services are replaced
    one after the other."""
    if not can_update_run(current.run_spec, spec):
        return False
    if isinstance(spec.configuration, ServiceConfiguration):
        return True
    name = spec.run_name or SHOWN_NAME
    return _all_specs(ctx, current.run_spec, name) == _all_specs(ctx, spec, name)


def _assert_unchanged(current: Run | None, planned: Run | None, spec: RunSpec) -> None:
    is_active = current is not None and not current.status.is_finished()
    was_active = planned is not None and not planned.status.is_finished()
    if not is_active and not was_active:
        return
    same = (
        current is not None
        and planned is not None
        and current.id == planned.id
        and current.deployment_num == planned.deployment_num
        and not changed_run_fields(current.run_spec, planned.run_spec)
    )
    if not same and is_active:
        raise InvalidRequest(f"Run {spec.run_name!r} has changed since the plan was made; apply again")


@dataclass(frozen=True)
class _NewRun:
    id: UUID
    name: str
    spec: RunSpec
    now: datetime


async def _submit(ctx: Context, session: AsyncSession, at: InProject, spec: RunSpec, previous: Run | None) -> UUID:
    """The rows of a run. A finished run of the same name makes room."""
    name = spec.run_name or await _free_name(session, at.project.id)
    new = _NewRun(uuid.uuid4(), name, spec.model_copy(update={"run_name": name}), clock.now())
    if previous is not None:
        await session.execute(
            update(RunRow).where(RunRow.project_id == at.project.id, RunRow.run_name == name).values(deleted=True)
        )
    await _check_archives(session, at, spec)
    repo = await _ensure_repo(session, at, spec)
    configuration, gateway = spec.configuration, None
    if isinstance(configuration, ServiceConfiguration):
        gateway = await service_gateways.choose(session, at, configuration, ctx.settings)
    session.add(_run_row(at, new, repo.id, gateway))
    await session.flush()
    targets = [events.Target("run", new.id, name, at.project.id)]
    if not _is_scheduled(spec):
        specs = [(uuid.uuid4(), job) for job in _all_specs(ctx, new.spec, name)]
        priority = spec.configuration.priority or 0
        values = job_values(specs, run_id=new.id, project_id=at.project.id, now=new.now, priority=priority)
        if values:
            await session.execute(insert(JobRow), values)
        targets += [events.Target("job", job_id, job.job_name, at.project.id) for job_id, job in specs]
        wake(session, *(f"job:{job_id}" for job_id, _ in specs))
    await events.record(session, "Run submitted", actor=at.caller.user_id, targets=targets)
    wake(session, f"run:{new.id}", f"placement:{at.project.id}", runs.changed(at.project.id, new.id))
    if isinstance(spec.configuration, ServiceConfiguration):
        wake(session, "routes")  # one that sleeps can be called from now on
    return new.id


def _is_scheduled(spec: RunSpec) -> bool:
    return merge_profile(spec).schedule is not None


def _run_row(at: InProject, new: _NewRun, repo_id: UUID, gateway: OnGateway | None) -> RunRow:
    service = service_spec(new.spec, project_name=at.project.name, run_name=new.name, gateway=gateway)
    replicas = sum(count for _, count in _replica_counts(new.spec))
    schedule = merge_profile(new.spec).schedule
    waits = schedule is not None or replicas == 0
    return RunRow(
        id=new.id,
        project_id=at.project.id,
        user_id=at.caller.user_id,
        repo_id=repo_id,
        run_name=new.name,
        submitted_at=new.now,
        last_processed_at=new.now,
        status=(RunStatus.PENDING if waits else RunStatus.SUBMITTED).value,
        run_spec=dump_json(new.spec),
        service_spec=None if service is None else dump_json(service),
        gateway_id=None if gateway is None else gateway.id,
        priority=new.spec.configuration.priority or 0,
        desired_replica_count=replicas,
        next_triggered_at=next_trigger(schedule.cron, new.now) if schedule is not None else None,
    )


async def _free_name(session: AsyncSession, project_id: UUID) -> str:
    chance = random.Random()
    while True:
        name = random_name(chance)
        taken = select(RunRow.id).where(RunRow.project_id == project_id, RunRow.run_name == name)
        if (await session.execute(taken.limit(1))).first() is None:
            return name


async def _ensure_repo(session: AsyncSession, at: InProject, spec: RunSpec) -> RepoRow:
    assert spec.repo_id is not None
    row = await find_repo(session, at.project.id, spec.repo_id)
    if row is None and spec.repo_id == VIRTUAL_REPO_ID:
        row = RepoRow(id=uuid.uuid4(), project_id=at.project.id, name=VIRTUAL_REPO_ID)
        row.type, row.info = RepoType.VIRTUAL.value, '{"repo_type":"virtual"}'
        session.add(row)
        await session.flush()
    if row is None:
        raise RepoNotExists(f"Repo {spec.repo_id!r} does not exist in this project; run `dstack init` first")
    return row


async def _check_archives(session: AsyncSession, at: InProject, spec: RunSpec) -> None:
    wanted = {archive.id for archive in spec.file_archives}
    mine = select(FileArchiveRow.id).where(
        FileArchiveRow.id.in_(wanted), FileArchiveRow.user_id == at.caller.user_id
    )
    missing = wanted - set(await session.scalars(mine)) if wanted else set()
    if missing:
        raise ResourceNotExists(f"The file archive {missing.pop()} does not exist; upload it first")


async def _update(ctx: Context, session: AsyncSession, at: InProject, current: Run, spec: RunSpec) -> UUID:
    """In place: jobs that the change leaves as they are keep running, replicas are replaced by and by."""
    if not _can_update(ctx, current, spec):
        fields = ", ".join(changed_run_fields(current.run_spec, spec)) or "nothing"
        raise InvalidRequest(
            f"Run {spec.run_name!r} is active and cannot be changed in place (changed: {fields}); stop it first"
        )
    await _check_archives(session, at, spec)
    row = await session.get_one(RunRow, current.id, with_for_update=True, populate_existing=True)
    if row.deployment_num != current.deployment_num:
        raise InvalidRequest(f"Run {spec.run_name!r} has changed since the plan was made; apply again")
    number = row.deployment_num + 1
    jobs = await session.execute(
        select(JobRow.id, JobRow.job_spec).where(JobRow.run_id == row.id, JobRow.finished_at.is_(None))
    )
    rows = [(id, text) for id, text in jobs]
    same = same_jobs(rows, spec, run_name=row.run_name, images=ctx.settings.images)
    if (
        len(same) < len(rows) and row.previous_run_spec is None
    ):  # a rollout; during one, what worked stays on record
        row.previous_run_spec = row.run_spec
    row.run_spec, row.deployment_num, row.rollout_error = dump_json(spec), number, None
    await runs.update_priority(session, row, spec.configuration.priority or 0)
    await session.execute(update(JobRow).where(JobRow.id.in_(same)).values(deployment_num=number))
    target = events.Target("run", current.id, spec.run_name or "", at.project.id)
    await events.record(session, "Run updated", actor=at.caller.user_id, targets=[target])
    names = (f"run:{current.id}", f"placement:{at.project.id}", runs.changed(at.project.id, current.id))
    wake(session, *names, "routes")
    return current.id

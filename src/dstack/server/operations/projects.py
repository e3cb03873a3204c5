"""Projects and their members."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.backends import BackendInfo
from dstack.core.errors import Forbidden, InvalidRequest, ResourceExists, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.names import check_project_name
from dstack.core.projects import Member, MemberPermissions, Project, ProjectRole, ProjectsInfoList
from dstack.core.schemas.projects import (
    CreateProjectRequest,
    ListProjectsRequest,
    MemberSetting,
    UpdateProjectRequest,
)
from dstack.core.server_config import OWN_BACKENDS
from dstack.server import clock, events, ssh_keys
from dstack.server.access import Caller, DefaultPermissions
from dstack.server.db.engine import wake
from dstack.server.db.queries import paging
from dstack.server.db.tables import BackendRow, FleetRow, MemberRow, ProjectRow, RunRow, UserRow
from dstack.server.encryption import Encryption
from dstack.server.operations import users
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.visibility import project_ids_of

UNFINISHED_RUNS = ("pending", "submitted", "provisioning", "running", "terminating")


async def list_projects(ctx: Context, caller: Caller, page: ListProjectsRequest) -> ProjectsInfoList:
    """Those of the caller and, unless `include_not_joined` is off, the public ones; admins see all.

    A token for some projects sees these only.
    """
    wanted = [ProjectRow.deleted.is_(False), *_visible_to(caller, page.include_not_joined)]
    if page.name_pattern:
        wanted.append(ProjectRow.name.icontains(page.name_pattern, autoescape=True))
    if page.username is not None:
        named = select(MemberRow.project_id).join(UserRow, UserRow.id == MemberRow.user_id)
        wanted.append(ProjectRow.id.in_(named.where(UserRow.name == page.username, UserRow.deleted.is_(False))))
    statement = paging.page(
        select(ProjectRow).where(*wanted),
        ProjectRow.created_at,
        ProjectRow.id,
        after=paging.position(page.prev_created_at, page.prev_id),
        limit=page.limit,
        ascending=page.ascending,
    )
    async with ctx.database.session() as session:
        rows = (await session.execute(statement)).scalars().all()
        total = None
        if page.return_total_count:
            count = select(func.count()).select_from(ProjectRow).where(*wanted)
            total = (await session.execute(count)).scalar_one()
        return ProjectsInfoList(total_count=total, projects=await _to_projects(ctx, session, rows))


async def list_projects_without_fleets(ctx: Context, caller: Caller) -> list[Project]:
    """Those of the caller in which nothing could run yet, newest first."""
    with_fleets = select(FleetRow.project_id).where(FleetRow.deleted.is_(False))
    statement = select(ProjectRow).where(
        ProjectRow.deleted.is_(False), ProjectRow.id.not_in(with_fleets), *_visible_to(caller, False)
    )
    async with ctx.database.session() as session:
        rows = await session.scalars(statement.order_by(ProjectRow.created_at.desc(), ProjectRow.id.desc()))
        return await _to_projects(ctx, session, rows)


def _visible_to(caller: Caller, include_not_joined: bool) -> list[ColumnElement[bool]]:
    mine = project_ids_of(caller)
    if caller.limited_to is not None and mine is not None:
        return [ProjectRow.id.in_(mine)]
    joined = ProjectRow.id.in_(select(MemberRow.project_id).where(MemberRow.user_id == caller.user_id))
    if not include_not_joined:
        return [joined]
    return [] if caller.is_admin else [or_(joined, ProjectRow.is_public.is_(True))]


async def get_project(ctx: Context, at: InProject) -> Project:
    """With members and backends."""
    async with ctx.database.session() as session:
        return await _load(ctx, session, at.project.id)


async def create_project(ctx: Context, caller: Caller, wanted: CreateProjectRequest) -> Project:
    """The caller becomes owner and admin. Raises ResourceExists, or Forbidden past the caller's quota."""
    try:
        check_project_name(wanted.project_name)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    if not ctx.permissions.may_create_projects(caller.global_role):
        raise Forbidden("Access denied: only admins of this server create projects")
    row = new_project(ctx.encryption, wanted.project_name, caller.user_id, is_public=wanted.is_public)
    row.templates_repo = wanted.templates_repo
    async with ctx.database.transaction() as session:
        await _check_quota(ctx, session, caller)
        if await find(session, wanted.project_name) is not None:
            raise ResourceExists(f"Project {wanted.project_name!r} exists already")
        await add_project(session, row, caller.user_id)
    async with ctx.database.session() as session:
        return await _load(ctx, session, row.id)


async def _check_quota(ctx: Context, session: AsyncSession, caller: Caller) -> None:
    if caller.is_admin:
        return
    owned = select(func.count()).where(ProjectRow.owner_id == caller.user_id, ProjectRow.deleted.is_(False))
    if (await session.execute(owned)).scalar_one() >= ctx.settings.user_project_quota:
        raise Forbidden(f"You own {ctx.settings.user_project_quota} projects, which is as many as a user may")


async def add_project(session: AsyncSession, row: ProjectRow, owner_id: UUID) -> None:
    """The row, its first member and the event."""
    session.add(row)
    await session.flush()
    session.add(MemberRow(project_id=row.id, user_id=owner_id, project_role=ProjectRole.ADMIN.value, member_num=0))
    await events.record(session, "Project created", actor=owner_id, targets=[project_target(row.id, row.name)])
    wake(session, "members")


def new_project(encryption: Encryption, name: str, owner_id: UUID, *, is_public: bool = False) -> ProjectRow:
    """A row with a key pair, not yet added."""
    now = clock.now()
    pair = ssh_keys.generate(f"project-{name}")
    project_id = uuid.uuid4()
    return ProjectRow(
        id=project_id,
        name=name,
        owner_id=owner_id,
        is_public=is_public,
        created_at=now,
        status="active",
        last_processed_at=now,
        deleted=False,
        ssh_private_key=encryption.encrypt(pair.private, f"projects.ssh_private_key:{project_id}"),
        ssh_public_key=pair.public,
    )


async def update_project(ctx: Context, at: InProject, wanted: UpdateProjectRequest) -> Project:
    """What is null stays as it is."""
    async with ctx.database.transaction() as session:
        row = await session.get_one(ProjectRow, at.project.id)
        if wanted.is_public is not None:
            row.is_public = wanted.is_public
        if wanted.templates_repo is not None or wanted.reset_templates_repo:
            row.templates_repo = None if wanted.reset_templates_repo else wanted.templates_repo
        await events.record(session, "Project updated", actor=at.caller.user_id, targets=[_target(at)])
        wake(session, "members")
    return await get_project(ctx, at)


async def delete_projects(ctx: Context, caller: Caller, names: list[str]) -> None:
    """All or none; one that still has unfinished runs or fleets is refused. Needs the admin's role in each."""
    async with ctx.database.transaction() as session:
        for name in names:
            row = await find(session, name)
            if row is None:
                raise ResourceNotExists(f"Project {name!r} does not exist")
            await _assert_may_delete(session, caller, row)
            await _assert_empty(session, row)
            await events.record(
                session, "Project deleted", actor=caller.user_id, targets=[project_target(row.id, row.name)]
            )
            row.deleted, row.original_name = True, row.name
            row.name = f"_deleted_{row.name}_{row.id.hex[:8]}"
        wake(session, "members", "routes")


async def _assert_may_delete(session: AsyncSession, caller: Caller, row: ProjectRow) -> None:
    if caller.is_admin:
        return
    statement = select(MemberRow.project_role).where(
        MemberRow.project_id == row.id, MemberRow.user_id == caller.user_id
    )
    if (await session.execute(statement)).scalar_one_or_none() != ProjectRole.ADMIN.value:
        raise Forbidden(f"Access denied: only admins of project {row.name!r} may delete it")


async def _assert_empty(session: AsyncSession, row: ProjectRow) -> None:
    runs = select(RunRow.run_name).where(RunRow.project_id == row.id, RunRow.status.in_(UNFINISHED_RUNS))
    names = (await session.execute(runs.limit(5))).scalars().all()
    if names:
        raise InvalidRequest(f"Project {row.name!r} has unfinished runs ({', '.join(names)}); stop these first")
    fleets = select(FleetRow.name).where(FleetRow.project_id == row.id, FleetRow.deleted.is_(False))
    names = (await session.execute(fleets.limit(5))).scalars().all()
    if names:
        raise InvalidRequest(f"Project {row.name!r} has fleets ({', '.join(names)}); delete these first")


async def set_members(ctx: Context, at: InProject, members: list[MemberSetting]) -> Project:
    """These and no others."""
    async with ctx.database.transaction() as session:
        wanted = await _resolve(session, members)
        await _check_admins(session, at, wanted, replaced=True)
        await session.execute(delete(MemberRow).where(MemberRow.project_id == at.project.id))
        _add_members(session, at, wanted.items(), start=0)
        await _record_members(session, at, "Project members set")
    return await get_project(ctx, at)


async def add_members(ctx: Context, at: InProject, members: list[MemberSetting]) -> Project:
    """Further ones, or other roles of present ones. Who is no member may only join a public project, as user."""
    async with ctx.database.transaction() as session:
        wanted = await _resolve(session, members)
        if at.role not in (ProjectRole.ADMIN, ProjectRole.MANAGER):
            _check_joining(at, wanted)
        else:
            await _check_admins(session, at, wanted, replaced=False)
        present = await _members(session, at.project.id)
        for row in present:
            if row.user_id in wanted:
                row.project_role = wanted.pop(row.user_id).value
        _add_members(session, at, wanted.items(), start=1 + max((m.member_num for m in present), default=-1))
        await _record_members(session, at, "Project members added")
    return await get_project(ctx, at)


async def remove_members(ctx: Context, at: InProject, usernames: list[str]) -> Project:
    """Managers remove anybody but admins; everybody may leave."""
    async with ctx.database.transaction() as session:
        wanted = await _resolve_names(session, usernames)
        own = set(wanted) == {at.caller.user_id}
        if at.role not in (ProjectRole.ADMIN, ProjectRole.MANAGER) and not own:
            raise Forbidden("Access denied: only managers and admins of the project remove others")
        present = {row.user_id: row for row in await _members(session, at.project.id)}
        for user_id, name in wanted.items():
            if user_id not in present:
                raise InvalidRequest(f"User {name!r} is not a member of project {at.project.name!r}")
            if present[user_id].project_role == ProjectRole.ADMIN.value and not (
                own or at.role is ProjectRole.ADMIN
            ):
                raise Forbidden("Access denied: only admins of the project remove admins")
            await session.delete(present.pop(user_id))
        if not any(row.project_role == ProjectRole.ADMIN.value for row in present.values()):
            raise InvalidRequest(f"Project {at.project.name!r} would be left without an admin")
        await _record_members(session, at, "Project members removed")
        project = None
        await session.flush()
        project = await _load(ctx, session, at.project.id)
    return project


def _check_joining(at: InProject, wanted: dict[UUID, ProjectRole]) -> None:
    joins_itself = set(wanted) == {at.caller.user_id} and at.role is None
    if not (joins_itself and at.project.is_public):
        raise Forbidden("Access denied: only managers and admins of the project add members")
    if wanted[at.caller.user_id] is not ProjectRole.USER:
        raise Forbidden("Access denied: you may join this project only with the role 'user'")


async def _check_admins(
    session: AsyncSession, at: InProject, wanted: dict[UUID, ProjectRole], *, replaced: bool
) -> None:
    """There is always an admin, and only admins make or unmake admins."""
    before = {row.user_id for row in await _members(session, at.project.id) if row.project_role == "admin"}
    named = {user_id for user_id, role in wanted.items() if role is ProjectRole.ADMIN}
    after = named if replaced else (before - set(wanted)) | named
    if at.role is not ProjectRole.ADMIN and before != after:
        raise Forbidden("Access denied: only admins of the project make or unmake admins")
    if not after:
        raise InvalidRequest(f"Project {at.project.name!r} would be left without an admin")


async def _members(session: AsyncSession, project_id: UUID) -> list[MemberRow]:
    statement = select(MemberRow).where(MemberRow.project_id == project_id).order_by(MemberRow.member_num)
    return list((await session.execute(statement)).scalars())


def _add_members(
    session: AsyncSession, at: InProject, wanted: Iterable[tuple[UUID, ProjectRole]], *, start: int
) -> None:
    for number, (user_id, role) in enumerate(wanted, start):
        session.add(
            MemberRow(project_id=at.project.id, user_id=user_id, project_role=role.value, member_num=number)
        )


async def _record_members(session: AsyncSession, at: InProject, message: str) -> None:
    await events.record(session, message, actor=at.caller.user_id, targets=[_target(at)])
    wake(session, "members")


async def _resolve(session: AsyncSession, members: list[MemberSetting]) -> dict[UUID, ProjectRole]:
    ids = await _resolve_names(session, [member.username for member in members])
    by_name = {name: user_id for user_id, name in ids.items()}
    return {by_name[member.username]: member.project_role for member in members}


async def _resolve_names(session: AsyncSession, names: list[str]) -> dict[UUID, str]:
    """Users by name or email address, to what they were called in the request."""
    found: dict[UUID, str] = {}
    for name in names:
        statement = select(UserRow.id).where(
            UserRow.deleted.is_(False), or_(UserRow.name == name, UserRow.email == name)
        )
        user_id = (await session.execute(statement.limit(1))).scalar_one_or_none()
        if user_id is None:
            raise ResourceNotExists(f"User {name!r} does not exist")
        found[user_id] = name
    return found


async def find(session: AsyncSession, name: str) -> ProjectRow | None:
    """Not among the deleted."""
    statement = select(ProjectRow).where(ProjectRow.name == name, ProjectRow.deleted.is_(False))
    return (await session.execute(statement)).scalar_one_or_none()


async def _load(ctx: Context, session: AsyncSession, project_id: UUID) -> Project:
    row = await session.get_one(ProjectRow, project_id)
    return (await _to_projects(ctx, session, [row]))[0]


async def _to_projects(ctx: Context, session: AsyncSession, rows: Iterable[ProjectRow]) -> list[Project]:
    """Four queries for any number of projects."""
    rows = list(rows)
    ids = [row.id for row in rows]
    owners = {
        user.id: user
        for user in (
            await session.execute(select(UserRow).where(UserRow.id.in_({row.owner_id for row in rows})))
        ).scalars()
    }
    members: dict[UUID, list[Member]] = {}
    joined = (
        select(MemberRow, UserRow)
        .join(UserRow, UserRow.id == MemberRow.user_id)
        .where(MemberRow.project_id.in_(ids), UserRow.deleted.is_(False))
        .order_by(MemberRow.member_num)
    )
    for member, user in await session.execute(joined):
        members.setdefault(member.project_id, []).append(_to_member(member, user, ctx.permissions))
    backends: dict[UUID, list[BackendInfo]] = {}
    for backend in (await session.execute(select(BackendRow).where(BackendRow.project_id.in_(ids)))).scalars():
        info = to_backend_info(backend)
        if info is not None:
            backends.setdefault(backend.project_id, []).append(info)
    return [
        Project(
            project_id=row.id,
            project_name=row.name,
            owner=users.to_user(owners[row.owner_id], ctx.permissions),
            created_at=row.created_at,
            backends=backends.get(row.id, []),
            members=members.get(row.id, []),
            is_public=row.is_public,
            templates_repo=row.templates_repo,
        )
        for row in rows
    ]


def to_backend_info(row: BackendRow) -> BackendInfo | None:
    """None for our own backends: clients read the types as a closed list, and these need no configuration."""
    if row.type in OWN_BACKENDS:
        return None
    return BackendInfo.model_validate({"name": row.type, "config": json.loads(row.config)})


def _to_member(member: MemberRow, user: UserRow, permissions: DefaultPermissions) -> Member:
    role = ProjectRole(member.project_role)
    is_admin = user.global_role == "admin"
    return Member(
        user=users.to_user(user, permissions),
        project_role=role,
        permissions=MemberPermissions(
            can_manage_ssh_fleets=permissions.may_manage_ssh_fleets(is_admin, role),
            can_manage_secrets=permissions.may_manage_secrets(is_admin, role),
        ),
    )


def project_target(project_id: UUID, name: str) -> events.Target:
    """For events."""
    return events.Target(EventTargetType.PROJECT.value, project_id, name, project_id)


def _target(at: InProject) -> events.Target:
    return project_target(at.project.id, at.project.name)

"""Users: who they are, their tokens and keys."""

from __future__ import annotations

import re
import uuid

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import Forbidden, InvalidRequest, ResourceExists, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.schemas.users import CreateUserRequest, ListUsersRequest
from dstack.core.users import GlobalRole, User, UserPermissions, UsersInfoList, UserTokenCreds, UserWithCreds
from dstack.server import clock, events, ssh_keys
from dstack.server.access import Caller, DefaultPermissions, hash_token
from dstack.server.db.engine import wake
from dstack.server.db.queries import paging
from dstack.server.db.tables import ProjectRow, UserPublicKeyRow, UserRow, UserTokenRow
from dstack.server.encryption import Encryption
from dstack.server.operations.context import Context

USERNAME = re.compile(r"[a-zA-Z0-9-_]{1,60}")


async def list_users(ctx: Context, caller: Caller, page: ListUsersRequest) -> UsersInfoList:
    """A page of all users, newest first unless `ascending`; `total_count` only when asked for."""
    wanted: list[ColumnElement[bool]] = [UserRow.deleted.is_(False)]
    if page.name_pattern:
        wanted.append(UserRow.name.icontains(page.name_pattern, autoescape=True))
    statement = paging.page(
        select(UserRow).where(*wanted),
        UserRow.created_at,
        UserRow.id,
        after=paging.position(page.prev_created_at, page.prev_id),
        limit=page.limit,
        ascending=page.ascending,
    )
    async with ctx.database.session() as session:
        rows = (await session.execute(statement)).scalars().all()
        total = None
        if page.return_total_count:
            total = (await session.execute(select(func.count()).select_from(UserRow).where(*wanted))).scalar_one()
    return UsersInfoList(total_count=total, users=[to_user(row, ctx.permissions) for row in rows])


async def get_my_user(ctx: Context, caller: Caller) -> UserWithCreds:
    """The caller with token and keys."""
    async with ctx.database.session() as session:
        row = await session.get_one(UserRow, caller.user_id)
    return to_user_with_creds(row, ctx.permissions, ctx.encryption)


async def get_my_user_as(ctx: Context, caller: Caller, token: str) -> UserWithCreds:
    """What a named token shows: itself, never the first one; the SSH key only where it opens all projects."""
    user = await get_my_user(ctx, caller)
    shown = {"creds": UserTokenCreds(token=token)}
    if caller.limited_to is not None:
        return user.model_copy(update={**shown, "ssh_private_key": None})
    return user.model_copy(update=shown)


async def get_user(ctx: Context, caller: Caller, username: str) -> UserWithCreds:
    """Any user with token and keys: for admins, and for the user."""
    if not caller.is_admin and caller.username != username:
        raise Forbidden("Access denied: only admins see other users' credentials")
    async with ctx.database.session() as session:
        row = await _get(session, username)
    return to_user_with_creds(row, ctx.permissions, ctx.encryption)


async def create_user(ctx: Context, caller: Caller, wanted: CreateUserRequest) -> User:
    """Raises ResourceExists when the name is taken."""
    if USERNAME.fullmatch(wanted.username) is None:
        raise InvalidRequest(
            f"{wanted.username!r} is not a valid user name: "
            "1 to 60 letters, digits, dashes and underscores are allowed"
        )
    row = new_user(ctx.encryption, wanted.username, wanted.global_role, token=str(uuid.uuid4()))
    row.email, row.active = wanted.email, wanted.active
    async with ctx.database.transaction() as session:
        if await find(session, wanted.username) is not None:
            raise ResourceExists(f"User {wanted.username!r} exists already")
        session.add(row)
        await session.flush()
        await events.record(session, "User created", actor=caller.user_id, targets=[user_target(row)])
    return to_user(row, ctx.permissions)


async def update_user(ctx: Context, caller: Caller, wanted: CreateUserRequest) -> User:
    """Role, address and whether the user may log in."""
    async with ctx.database.transaction() as session:
        row = await _get(session, wanted.username)
        row.global_role = wanted.global_role.value
        row.email, row.active = wanted.email, wanted.active
        await events.record(session, "User updated", actor=caller.user_id, targets=[user_target(row)])
        wake(session, "tokens")
    return to_user(row, ctx.permissions)


async def refresh_token(ctx: Context, caller: Caller, username: str) -> UserWithCreds:
    """A new token; the old one stops working at once."""
    _may_change(caller, username)
    async with ctx.database.transaction() as session:
        row = await _get(session, username)
        _set_token(ctx.encryption, row, str(uuid.uuid4()))
        await events.record(session, "User token refreshed", actor=caller.user_id, targets=[user_target(row)])
        wake(session, "tokens")
    return to_user_with_creds(row, ctx.permissions, ctx.encryption)


async def refresh_ssh_key(ctx: Context, caller: Caller, username: str) -> UserWithCreds:
    """A new SSH key pair."""
    _may_change(caller, username)
    pair = ssh_keys.generate(username)
    async with ctx.database.transaction() as session:
        row = await _get(session, username)
        _set_ssh_key(ctx.encryption, row, pair)
        await events.record(session, "User SSH key refreshed", actor=caller.user_id, targets=[user_target(row)])
        wake(session, "tokens")
    return to_user_with_creds(row, ctx.permissions, ctx.encryption)


async def delete_users(ctx: Context, caller: Caller, usernames: list[str]) -> None:
    """All or none. A deleted user's row stays under another name, for the events."""
    async with ctx.database.transaction() as session:
        for username in usernames:
            row = await _get(session, username)
            if row.id == caller.user_id:
                raise InvalidRequest("You cannot delete yourself")
            await _assert_owns_nothing(session, row)
            await events.record(session, "User deleted", actor=caller.user_id, targets=[user_target(row)])
            row.deleted, row.active = True, False
            row.name = f"_deleted_{row.name}_{row.id.hex[:8]}"
            row.token_hash = f"deleted-{row.id.hex}"
            for table in (UserTokenRow, UserPublicKeyRow):
                await session.execute(delete(table).where(table.user_id == row.id))
        wake(session, "tokens", "members")


async def _assert_owns_nothing(session: AsyncSession, row: UserRow) -> None:
    owned = select(ProjectRow.name).where(ProjectRow.owner_id == row.id, ProjectRow.deleted.is_(False))
    names = (await session.execute(owned)).scalars().all()
    if names:
        raise InvalidRequest(
            f"User {row.name!r} owns the project(s) {', '.join(sorted(names))}; delete these first"
        )


def new_user(encryption: Encryption, name: str, role: GlobalRole, *, token: str) -> UserRow:
    """A row with token and key pair, not yet added."""
    row = UserRow(id=uuid.uuid4(), name=name, global_role=role.value, active=True, deleted=False)
    row.created_at = clock.now()
    _set_token(encryption, row, token)
    _set_ssh_key(encryption, row, ssh_keys.generate(name))
    return row


def _set_token(encryption: Encryption, row: UserRow, token: str) -> None:
    row.token = encryption.encrypt(token, f"users.token:{row.id}")
    row.token_hash = hash_token(token)


def _set_ssh_key(encryption: Encryption, row: UserRow, pair: ssh_keys.KeyPair) -> None:
    row.ssh_private_key = encryption.encrypt(pair.private, f"users.ssh_private_key:{row.id}")
    row.ssh_public_key = pair.public


def to_user(row: UserRow, permissions: DefaultPermissions) -> User:
    """As others see it."""
    return User.model_validate(_fields(row, permissions))


def to_user_with_creds(row: UserRow, permissions: DefaultPermissions, encryption: Encryption) -> UserWithCreds:
    """As they themselves see it."""
    private = row.ssh_private_key
    return UserWithCreds(
        **_fields(row, permissions),
        creds=UserTokenCreds(token=encryption.decrypt(row.token, f"users.token:{row.id}")),
        ssh_private_key=encryption.decrypt(private, f"users.ssh_private_key:{row.id}") if private else None,
    )


def _fields(row: UserRow, permissions: DefaultPermissions) -> dict[str, object]:
    role = GlobalRole(row.global_role)
    return {
        "id": row.id,
        "username": row.name,
        "created_at": row.created_at,
        "global_role": role,
        "email": row.email,
        "active": row.active,
        "permissions": UserPermissions(can_create_projects=permissions.may_create_projects(role)),
        "ssh_public_key": row.ssh_public_key,
    }


def user_target(row: UserRow) -> events.Target:
    """For events."""
    return events.Target(EventTargetType.USER.value, row.id, row.name)


async def find(session: AsyncSession, username: str) -> UserRow | None:
    """Not among the deleted."""
    statement = select(UserRow).where(UserRow.name == username, UserRow.deleted.is_(False))
    return (await session.execute(statement)).scalar_one_or_none()


async def _get(session: AsyncSession, username: str) -> UserRow:
    row = await find(session, username)
    if row is None:
        raise ResourceNotExists(f"User {username!r} does not exist")
    return row


def _may_change(caller: Caller, username: str) -> None:
    if not caller.is_admin and caller.username != username:
        raise Forbidden("Access denied: only admins may change other users")

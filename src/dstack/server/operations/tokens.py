"""Named tokens: further ones of a user, with expiry and scope (better B19)."""

from __future__ import annotations

import json
import re
import uuid
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core import tokens
from dstack.core.errors import InvalidRequest, ProjectNotFound, ResourceExists, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.schemas.tokens import CreateTokenRequest
from dstack.core.tokens import Token, TokenWithValue
from dstack.server import clock, events
from dstack.server.access import Caller, hash_token
from dstack.server.db.engine import wake
from dstack.server.db.tables import ProjectRow, UserTokenRow
from dstack.server.operations.context import Context

NAME = re.compile(r"[A-Za-z0-9-_.]{1,60}")
MAX_TOKENS = 100
"""Of a user."""


async def list_tokens(ctx: Context, caller: Caller) -> list[Token]:
    """The caller's, oldest first, also those that have expired."""
    statement = select(UserTokenRow).where(UserTokenRow.user_id == caller.user_id)
    async with ctx.database.session() as session:
        rows = list(await session.scalars(statement.order_by(UserTokenRow.created_at, UserTokenRow.id)))
        names = await _project_names(session, rows)
    return [Token.model_validate(_fields(row, names)) for row in rows]


async def create_token(ctx: Context, caller: Caller, wanted: CreateTokenRequest) -> TokenWithValue:
    """With its text, which is shown this once."""
    _check(wanted)
    projects = await _project_ids(ctx, caller, wanted.projects)
    text = tokens.generate()
    row = UserTokenRow(
        id=uuid.uuid4(),
        user_id=caller.user_id,
        name=wanted.name,
        token_hash=hash_token(text),
        created_at=clock.now(),
        expires_at=wanted.expires_at,
        project_ids=None if projects is None else json.dumps([str(id_) for id_ in projects]),
        services_only=wanted.services_only,
    )
    async with ctx.database.transaction() as session:
        await _check_room(session, caller, wanted.name)
        session.add(row)
        await session.flush()
        await _record(session, caller, f"Token {wanted.name} created")
    return TokenWithValue.model_validate({**_fields(row, projects or {}), "token": text})


async def delete_tokens(ctx: Context, caller: Caller, names: list[str]) -> None:
    """All or none; they stop working at once."""
    async with ctx.database.transaction() as session:
        for name in names:
            gone = await session.scalars(
                delete(UserTokenRow)
                .where(UserTokenRow.user_id == caller.user_id, UserTokenRow.name == name)
                .returning(UserTokenRow.id)
            )
            if gone.one_or_none() is None:
                raise ResourceNotExists(f"You have no token {name!r}")
            await _record(session, caller, f"Token {name} deleted")
        wake(session, "tokens")


def _check(wanted: CreateTokenRequest) -> None:
    if NAME.fullmatch(wanted.name) is None:
        raise InvalidRequest(
            f"{wanted.name!r} is not a valid token name: "
            "1 to 60 letters, digits, dashes, underscores and dots are allowed"
        )
    if wanted.expires_at is not None and wanted.expires_at <= clock.now():
        raise InvalidRequest(f"`expires_at` is in the past: {wanted.expires_at.isoformat()}")


async def _check_room(session: AsyncSession, caller: Caller, name: str) -> None:
    mine = UserTokenRow.user_id == caller.user_id
    if await session.scalar(select(UserTokenRow.id).where(mine, UserTokenRow.name == name)) is not None:
        raise ResourceExists(f"You have a token {name!r} already")
    if (await session.scalar(select(func.count()).select_from(UserTokenRow).where(mine)) or 0) >= MAX_TOKENS:
        raise InvalidRequest(f"You have {MAX_TOKENS} tokens, which is as many as a user may; delete some first")


async def _project_ids(ctx: Context, caller: Caller, names: list[str] | None) -> dict[UUID, str] | None:
    """Only projects of the caller: a token never opens more than its user may."""
    if names is None:
        return None
    found: dict[UUID, str] = {}
    for name in names:
        project = await ctx.access.find_project(name)
        if project is None or caller.role_in(project) is None:
            raise ProjectNotFound(f"Project {name!r} does not exist, or you are not a member of it")
        found[project.id] = name
    return found


async def _project_names(session: AsyncSession, rows: list[UserTokenRow]) -> dict[UUID, str]:
    ids = {id_ for row in rows for id_ in _limit(row) or ()}
    if not ids:
        return {}
    statement = select(ProjectRow.id, ProjectRow.name).where(ProjectRow.id.in_(ids), ProjectRow.deleted.is_(False))
    return {id_: name for id_, name in await session.execute(statement)}


def _limit(row: UserTokenRow) -> list[UUID] | None:
    return None if row.project_ids is None else [UUID(id_) for id_ in json.loads(row.project_ids)]


def _fields(row: UserTokenRow, names: dict[UUID, str]) -> dict[str, object]:
    limit = _limit(row)
    return {
        "id": row.id,
        "name": row.name,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "last_used_at": row.last_used_at,
        "projects": None if limit is None else [names[id_] for id_ in limit if id_ in names],
        "services_only": row.services_only,
    }


async def _record(session: AsyncSession, caller: Caller, message: str) -> None:
    target = events.Target(EventTargetType.USER.value, caller.user_id, caller.username)
    await events.record(session, message, actor=caller.user_id, targets=[target])

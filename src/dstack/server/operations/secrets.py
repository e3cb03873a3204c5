"""Secrets of a project: values that runs use without showing them."""

from __future__ import annotations

import re
import uuid
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import InvalidRequest, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.secrets import Secret
from dstack.server import clock, events
from dstack.server.db.tables import SecretRow
from dstack.server.operations.context import Context, InProject

NAME = re.compile(r"[A-Za-z0-9-_]{1,200}")
MAX_VALUE_BYTES = 5000


async def list_secrets(ctx: Context, at: InProject) -> list[Secret]:
    """Without their values."""
    statement = (
        select(SecretRow).where(SecretRow.project_id == at.project.id).order_by(SecretRow.created_at.desc())
    )
    async with ctx.database.session() as session:
        rows = (await session.execute(statement)).scalars().all()
    return [Secret(id=row.id, name=row.name) for row in rows]


async def get_secret(ctx: Context, at: InProject, name: str) -> Secret:
    """With its value."""
    async with ctx.database.session() as session:
        row = await _find(session, at.project.id, name)
    if row is None:
        raise ResourceNotExists(f"Secret {name!r} does not exist")
    return Secret(id=row.id, name=row.name, value=ctx.encryption.decrypt(row.value, _context(row.id)))


async def create_or_update_secret(ctx: Context, at: InProject, name: str, value: str) -> Secret:
    """Runs that are submitted from now on see the new value."""
    _check(name, value)
    now = clock.now()
    async with ctx.database.transaction() as session:
        row = await _find(session, at.project.id, name)
        message = "Secret updated" if row is not None else "Secret created"
        if row is None:
            row = SecretRow(id=uuid.uuid4(), project_id=at.project.id, name=name, created_at=now)
            session.add(row)
        row.value = ctx.encryption.encrypt(value, _context(row.id))
        row.updated_at = now
        await session.flush()
        await events.record(session, message, actor=at.caller.user_id, targets=[_target(row)])
    return Secret(id=row.id, name=name, value=value)


async def delete_secrets(ctx: Context, at: InProject, names: list[str]) -> None:
    """All or none."""
    async with ctx.database.transaction() as session:
        for name in names:
            row = await _find(session, at.project.id, name)
            if row is None:
                raise ResourceNotExists(f"Secret {name!r} does not exist")
            await events.record(session, "Secret deleted", actor=at.caller.user_id, targets=[_target(row)])
            await session.delete(row)


def _check(name: str, value: str) -> None:
    if NAME.fullmatch(name) is None:
        raise InvalidRequest(
            f"{name!r} is not a valid secret name: 1 to 200 letters, digits, dashes and underscores are allowed"
        )
    if len(value.encode()) > MAX_VALUE_BYTES:
        raise InvalidRequest(f"The value of secret {name!r} is longer than {MAX_VALUE_BYTES} bytes")


async def _find(session: AsyncSession, project_id: UUID, name: str) -> SecretRow | None:
    statement = select(SecretRow).where(SecretRow.project_id == project_id, SecretRow.name == name)
    return (await session.execute(statement)).scalar_one_or_none()


def _context(secret_id: UUID) -> str:
    return f"secrets.value:{secret_id}"


def _target(row: SecretRow) -> events.Target:
    return events.Target(EventTargetType.SECRET.value, row.id, row.name, row.project_id)

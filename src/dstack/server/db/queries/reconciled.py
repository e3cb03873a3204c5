"""Queries of the loop over rows that it drives; also its leases. `table` is the table of one kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Executable, Float, Row, Table, and_, bindparam, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession


@dataclass
class Head:
    """What the loop itself knows of a row, and under which lease."""

    status: str
    version: int
    attempts: int
    wake_at: datetime | None
    token: UUID | None = None
    """None on SQLite, where one process does all, and after the lease was given back."""


def _db_now() -> ColumnElement[datetime]:
    """The database's clock, so that replicas need not agree on theirs."""
    return func.timezone("UTC", func.clock_timestamp())


def _db_in(parameter: str) -> ColumnElement[Any]:
    """So many seconds, a parameter of that name, from now."""
    return _db_now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam(parameter, type_=Float()))


# The statements of every pass are built once each: putting one together takes longer than running it.


@cache
def _read_head(table: Table) -> Executable:
    columns = (table.c.status, table.c.version, table.c.attempts, table.c.wake_at)
    return select(*columns).where(table.c.id == bindparam("row_id"))


async def read_head(session: AsyncSession, table: Table, id: UUID) -> Head | None:
    row = (await session.execute(_read_head(table), {"row_id": id})).first()
    return None if row is None else _head(row)


async def exists(session: AsyncSession, table: Table, id: UUID) -> bool:
    return (await session.execute(select(table.c.id).where(table.c.id == id))).first() is not None


@cache
def _acquire(table: Table) -> Executable:
    free = or_(table.c.lease_until.is_(None), table.c.lease_until < _db_now())
    row_id = select(table.c.id).where(table.c.id == bindparam("row_id"), free)
    row_id = row_id.with_for_update(skip_locked=True, key_share=True)
    return (
        update(table)
        .where(table.c.id == row_id.scalar_subquery())
        .values(lease_owner=bindparam("owner"), lease_token=bindparam("token"), lease_until=_db_in("seconds"))
        .returning(table.c.status, table.c.version, table.c.attempts, table.c.wake_at)
    )


async def acquire(session: AsyncSession, table: Table, id: UUID, owner: str, seconds: float) -> Head | None:
    """Takes the lease unless somebody else's holds. Skips a row that another transaction is changing, not one that
    other rows are being added to (`key_share`)."""
    token = uuid4()
    values = {"row_id": id, "owner": owner, "token": token, "seconds": seconds}
    row = (await session.execute(_acquire(table), values)).first()
    return None if row is None else _head(row, token)


def _head(row: Row[str, int, int, datetime | None], token: UUID | None = None) -> Head:
    return Head(row[0], row[1], row[2], row[3], token)


async def renew(session: AsyncSession, table: Table, tokens: Sequence[UUID], seconds: float) -> None:
    """But for rows that are being changed at this moment: waiting for several in turn invites deadlocks."""
    held = table.c.lease_token.in_(tokens)
    ids = select(table.c.id).where(held).with_for_update(skip_locked=True, key_share=True)
    longer = update(table).where(table.c.id.in_(ids)).values(lease_until=_db_in("seconds"))
    await session.execute(longer, {"seconds": seconds})


@cache
def _release(table: Table) -> Executable:
    statement = update(table).where(table.c.id == bindparam("row_id"), table.c.lease_token == bindparam("token"))
    return statement.values(_FREE)


async def release(session: AsyncSession, table: Table, id: UUID, token: UUID) -> None:
    await session.execute(_release(table), {"row_id": id, "token": token})


_FREE: dict[str, Any] = {"lease_owner": None, "lease_token": None, "lease_until": None}


@cache
def _write(table: Table, columns: tuple[str, ...], is_leased: bool, free: bool) -> Executable:
    guard = and_(table.c.id == bindparam("row_id"), table.c.version == bindparam("known_version"))
    if is_leased:
        guard = and_(guard, table.c.lease_token == bindparam("token"))
    changes: dict[str, Any] = {name: bindparam(f"new_{name}") for name in (*columns, "version")}
    if is_leased and free:
        changes |= _FREE
    return update(table).where(guard).values(changes).returning(table.c.id)


async def write(
    session: AsyncSession, table: Table, id: UUID, head: Head, values: Mapping[str, Any], *, free: bool
) -> bool:
    """Guarded: False, and nothing written, when the lease was lost or somebody else has written since.

    `free`: gives the lease back with it.
    """
    statement = _write(table, tuple(values), head.token is not None, free)
    parameters = {f"new_{name}": value for name, value in values.items()}
    guard = {"row_id": id, "known_version": head.version, "token": head.token, "new_version": head.version + 1}
    if head.token is None:
        del guard["token"]
    result = await session.execute(statement, {**parameters, **guard})
    return result.first() is not None


async def read_columns(
    session: AsyncSession, table: Table, id: UUID, names: Sequence[str]
) -> dict[str, Any] | None:
    columns = [table.c[name] for name in names]
    row = (await session.execute(select(*columns).where(table.c.id == id))).first()
    return None if row is None else dict(zip(names, row, strict=True))


async def list_unfinished(session: AsyncSession, table: Table, statuses: Sequence[str]) -> list[UUID]:
    """Ids of the rows with one of these statuses, those that wait longest first."""
    query = select(table.c.id).where(table.c.status.in_(statuses)).order_by(table.c.last_processed_at)
    return list(await session.scalars(query))


async def list_timers(
    session: AsyncSession, table: Table, until: datetime | None = None
) -> list[tuple[UUID, datetime]]:
    """Rows with a `wake_at`; with `until` those that are due by then and that nobody works on."""
    query = select(table.c.id, table.c.wake_at).where(table.c.wake_at.is_not(None))
    if until is not None:
        is_free = or_(table.c.lease_until.is_(None), table.c.lease_until < _db_now())
        query = query.where(table.c.wake_at <= until, is_free)
    return [(id, wake_at) for id, wake_at in (await session.execute(query))]


async def list_abandoned(session: AsyncSession, table: Table) -> list[UUID]:
    """Rows whose lease ran out without being given back: their replica died at work."""
    query = select(table.c.id).where(table.c.lease_until < _db_now())
    return list(await session.scalars(query))

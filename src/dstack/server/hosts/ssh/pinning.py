"""Which host keys have been seen: the first one that a host shows is on record before anything is sent to it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from sqlalchemy import select, update

from dstack.core.errors import HostKeyChanged
from dstack.server.db.engine import Database
from dstack.server.db.tables import InstanceRow
from dstack.server.hosts.ssh.target import SSHTarget


def with_pins(target: SSHTarget, host_key: str | None, jump_host_key: str | None) -> SSHTarget:
    """The target with the keys on record; those that its fleet's file gives come first."""
    jump = target.jump
    if jump is not None:
        jump = replace(jump, host_key=jump.host_key or jump_host_key)
    return replace(target, host_key=target.host_key or host_key, jump=jump)


async def record(database: Database, instance_id: UUID, hop: SSHTarget, key: str, *, is_jump: bool) -> None:
    """`hop` has shown that key, and none was known. Raises HostKeyChanged when another one is on record by now."""
    column = InstanceRow.jump_host_key if is_jump else InstanceRow.host_key
    async with database.transaction() as session:
        unknown = update(InstanceRow).where(InstanceRow.id == instance_id, column.is_(None))
        await session.execute(unknown.values({column.key: key}))
        known = await session.scalar(select(column).where(InstanceRow.id == instance_id))
    if known != key:
        raise HostKeyChanged(f"{hop} showed two host keys at once; somebody may be in between")

"""Archives of files that users upload for their runs."""

from __future__ import annotations

import uuid

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import ResourceNotExists
from dstack.core.files import FileArchive
from dstack.server.access import Caller
from dstack.server.db.tables import FileArchiveRow
from dstack.server.operations.context import Context
from dstack.server.operations.repos import check_hash


async def get_archive_by_hash(ctx: Context, caller: Caller, blob_hash: str) -> FileArchive:
    """The caller's own. Raises ResourceNotExists."""
    async with ctx.database.session() as session:
        row = await _find(session, caller, blob_hash)
    if row is None:
        raise ResourceNotExists(f"There is no archive with the hash {blob_hash!r}")
    return FileArchive(id=row.id, hash=row.blob_hash)


async def upload_archive(ctx: Context, caller: Caller, blob_hash: str, blob: bytes) -> FileArchive:
    """The same hash of the same user is the same archive."""
    check_hash(blob_hash)
    async with ctx.database.transaction() as session:
        row = await _find(session, caller, blob_hash)
        if row is None:
            row = FileArchiveRow(id=uuid.uuid4(), user_id=caller.user_id, blob_hash=blob_hash, blob=blob)
            session.add(row)
            await session.flush()
    return FileArchive(id=row.id, hash=row.blob_hash)


async def _find(session: AsyncSession, caller: Caller, blob_hash: str) -> FileArchiveRow | None:
    statement = select(FileArchiveRow).where(
        FileArchiveRow.user_id == caller.user_id, FileArchiveRow.blob_hash == blob_hash
    )
    return (await session.execute(statement)).scalar_one_or_none()

"""Repositories that runs take their code from, and uploaded diffs of them."""

from __future__ import annotations

import json
import re
import uuid
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import InvalidRequest, RepoNotExists, ResourceNotExists
from dstack.core.repos import RemoteRepoCreds, RepoHead, RepoHeadWithCreds, RepoInfo
from dstack.core.schemas.repos import SaveRepoCredsRequest
from dstack.server.db.tables import CodeRow, RepoCredsRow, RepoRow, RunRow
from dstack.server.operations.context import Context, InProject

HASH = re.compile(r"[0-9a-f]{64}")


async def list_repos(ctx: Context, at: InProject) -> list[RepoHead]:
    """All of the project."""
    statement = select(RepoRow).where(RepoRow.project_id == at.project.id).order_by(RepoRow.name)
    async with ctx.database.session() as session:
        rows = (await session.execute(statement)).scalars().all()
    return [RepoHead(repo_id=row.name, repo_info=_info(row)) for row in rows]


async def get_repo(ctx: Context, at: InProject, repo_id: str, *, include_creds: bool) -> RepoHeadWithCreds:
    """Credentials are the caller's own. Raises ResourceNotExists, which tells a client to initialise it."""
    async with ctx.database.session() as session:
        row = await find(session, at.project.id, repo_id)
        if row is None:
            raise ResourceNotExists(_unknown(repo_id))
        creds = await _find_creds(session, row.id, at.caller.user_id) if include_creds else None
    decrypted = ctx.encryption.decrypt(creds.creds, _context(creds.id)) if creds is not None else None
    return RepoHeadWithCreds(
        repo_id=row.name,
        repo_info=_info(row),
        repo_creds=RemoteRepoCreds.model_validate_json(decrypted, extra="ignore") if decrypted else None,
    )


async def init_repo(ctx: Context, at: InProject, wanted: SaveRepoCredsRequest) -> None:
    """Makes the repository known, and stores the caller's credentials for it where there are any."""
    async with ctx.database.transaction() as session:
        row = await find(session, at.project.id, wanted.repo_id)
        if row is None:
            row = RepoRow(id=uuid.uuid4(), project_id=at.project.id, name=wanted.repo_id)
            session.add(row)
        row.type = wanted.repo_info.repo_type
        row.info = wanted.repo_info.model_dump_json()
        await session.flush()
        creds = await _find_creds(session, row.id, at.caller.user_id)
        if wanted.repo_creds is None:
            if creds is not None:
                await session.delete(creds)
            return
        if creds is None:
            creds = RepoCredsRow(id=uuid.uuid4(), repo_id=row.id, user_id=at.caller.user_id)
            session.add(creds)
        creds.creds = ctx.encryption.encrypt(wanted.repo_creds.model_dump_json(), _context(creds.id))


async def delete_repos(ctx: Context, at: InProject, repo_ids: list[str]) -> None:
    """Runs that were made from them stay. Names of none are no error."""
    async with ctx.database.transaction() as session:
        for repo_id in repo_ids:
            row = await find(session, at.project.id, repo_id)
            if row is None:
                continue
            used = select(RunRow.run_name).where(RunRow.repo_id == row.id).limit(1)
            if (await session.execute(used)).first() is not None:
                raise InvalidRequest(f"Repo {repo_id!r} is used by runs of the project and cannot be deleted")
            await session.execute(delete(RepoRow).where(RepoRow.id == row.id))


async def upload_code(ctx: Context, at: InProject, repo_id: str, blob_hash: str, blob: bytes) -> None:
    """Stores a diff under its hash; one that is there already is left alone."""
    check_hash(blob_hash)
    async with ctx.database.transaction() as session:
        row = await find(session, at.project.id, repo_id)
        if row is None:
            raise RepoNotExists(_unknown(repo_id))
        known = select(CodeRow.id).where(CodeRow.repo_id == row.id, CodeRow.blob_hash == blob_hash)
        if (await session.execute(known)).first() is None:
            session.add(CodeRow(repo_id=row.id, blob_hash=blob_hash, blob=blob))


def check_hash(blob_hash: str) -> None:
    """Raises InvalidRequest unless it looks like a SHA-256."""
    if HASH.fullmatch(blob_hash) is None:
        raise InvalidRequest(
            f"The file name {blob_hash[:80]!r} is not the content's SHA-256: 64 lower-case hexadecimal digits"
        )


async def find(session: AsyncSession, project_id: UUID, repo_id: str) -> RepoRow | None:
    """By the `repo_id` of the API."""
    statement = select(RepoRow).where(RepoRow.project_id == project_id, RepoRow.name == repo_id)
    return (await session.execute(statement)).scalar_one_or_none()


def _unknown(repo_id: str) -> str:
    return f"Repo {repo_id!r} does not exist in this project; run `dstack init` first"


async def _find_creds(session: AsyncSession, repo_id: UUID, user_id: UUID) -> RepoCredsRow | None:
    statement = select(RepoCredsRow).where(RepoCredsRow.repo_id == repo_id, RepoCredsRow.user_id == user_id)
    return (await session.execute(statement)).scalar_one_or_none()


def _info(row: RepoRow) -> RepoInfo:
    adapter: TypeAdapter[RepoInfo] = TypeAdapter(RepoInfo)
    return adapter.validate_python(json.loads(row.info))


def _context(creds_id: UUID) -> str:
    return f"repo_creds.creds:{creds_id}"

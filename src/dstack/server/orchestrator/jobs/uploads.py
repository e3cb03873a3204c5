"""What the agent needs besides the task itself: files, unpushed changes, credentials, the nodes' key."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.agent.protocol import RepoCredentials
from dstack.core.jobs import JobSpec
from dstack.core.repos import RemoteRepoCreds, RemoteRunRepoData
from dstack.server.db.engine import Database
from dstack.server.db.tables import CodeRow, FileArchiveRow, RepoCredsRow
from dstack.server.encryption import Encryption
from dstack.server.planning.tasks import CREDENTIALS_FILE, DIFF_FILE, NODE_KEY_FILE


class UploadGone(Exception):
    """What the run was submitted with is not stored any more; the message is for the user."""


@dataclass(frozen=True)
class RepoAccess:
    """How the owner of a run reaches its repository."""

    clone_url: str | None = None
    credentials: RepoCredentials | None = None


async def read_access(
    session: AsyncSession, encryption: Encryption, spec: JobSpec, repo_id: UUID | None, user_id: UUID
) -> RepoAccess:
    """Without any where the job has no repository."""
    if not isinstance(spec.repo_data, RemoteRunRepoData):
        return RepoAccess()
    query = select(RepoCredsRow).where(RepoCredsRow.repo_id == repo_id, RepoCredsRow.user_id == user_id)
    row = await session.scalar(query)
    if row is None:
        return RepoAccess()
    text = str(encryption.decrypt(row.creds, f"repo_creds.creds:{row.id}"))
    creds = RemoteRepoCreds.model_validate_json(text, extra="ignore")
    if not (creds.private_key or creds.oauth_token):
        return RepoAccess(creds.clone_url)
    return RepoAccess(creds.clone_url, RepoCredentials(creds.private_key, creds.oauth_token))


async def read_uploads(
    database: Database, spec: JobSpec, repo_id: UUID | None, access: RepoAccess, *, node_key: str | None
) -> AsyncIterator[tuple[str, bytes]]:
    """Names and contents, one after another. Raises UploadGone."""
    for archive in spec.file_archives:
        query = select(FileArchiveRow.blob).where(FileArchiveRow.id == archive.id)
        async with database.session() as session:
            blob = await session.scalar(query)
        yield str(archive.id), _present(blob, f"The files for {archive.path!r} are")
    if isinstance(spec.repo_data, RemoteRunRepoData) and spec.repo_code_hash:
        where = CodeRow.repo_id == repo_id, CodeRow.blob_hash == spec.repo_code_hash
        async with database.session() as session:
            diff = await session.scalar(select(CodeRow.blob).where(*where))
        yield DIFF_FILE, _present(diff, "The local changes to the repository are")
    if access.credentials is not None:
        yield CREDENTIALS_FILE, json.dumps(access.credentials.to_json()).encode()
    if node_key is not None:
        yield NODE_KEY_FILE, node_key.encode()


def _present(blob: bytes | None, what: str) -> bytes:
    if blob is None:
        raise UploadGone(f"{what} not stored on the server any more: apply the configuration again")
    return blob

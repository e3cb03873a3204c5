"""Who may enter which job, and what a user name at the door means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from dstack.core.jobs import JobStatus
from dstack.server.access import Caller
from dstack.server.db.engine import Database
from dstack.server.db.queries import ssh_door as queries
from dstack.server.db.queries.ssh_door import DoorJob, DoorUser
from dstack.server.settings import Settings

_ID_LENGTH = 36


class Wanted(NamedTuple):
    """A job, and the user in it to be; None: the job's own."""

    job_id: UUID
    user: str | None


class By(Enum):
    """What let somebody in."""

    USER_KEY = "key of a user"
    RUN_KEY = "key of the run"
    PROJECT_KEY = "key of the project"
    TOKEN = "token"


class Entrance(NamedTuple):
    """`user` is None with the key of the project."""

    by: By
    user: DoorUser | None


@dataclass(frozen=True)
class Carried:
    """A connection that came by WebSocket, and whose token opened it."""

    caller: Caller
    token: str
    address: str


def parse_user_name(text: str) -> Wanted | None:
    """`<job id>` or `<job id>_<user>`; None for anything else."""
    id_, separator, user = text[:_ID_LENGTH], text[_ID_LENGTH : _ID_LENGTH + 1], text[_ID_LENGTH + 1 :]
    if separator not in ("", "_") or bool(separator) != bool(user):
        return None
    try:
        job_id = UUID(id_)
    except ValueError:
        return None
    return Wanted(job_id, user or None) if str(job_id) == id_.lower() else None


def proxy_only(settings: Settings) -> str:
    """What to tell those who do not come from the separate SSH proxy, where nobody else may come."""
    assert settings.sshproxy_address is not None
    hostname, port = settings.sshproxy_address
    return f"SSH leads into jobs through {hostname}:{port} only (DSTACK_SERVER_SSHPROXY_ENFORCED)"


async def find_job(database: Database, job_id: UUID) -> DoorJob | None:
    async with database.session() as session:
        return await queries.find_job(session, job_id)


async def enter_with_key(database: Database, job: DoorJob, key: str, fingerprint: str) -> Entrance | None:
    """`key`: type and base64; `fingerprint`: `SHA256:…`. None when that key does not open the job."""
    if key == queries.without_comment(job.project_key):
        return Entrance(By.PROJECT_KEY, None)
    async with database.session() as session:
        user = await queries.find_user_of_key(session, job.project_id, key, fingerprint)
        if user is not None:
            return Entrance(By.USER_KEY, user)
        if job.run_key is not None and key == queries.without_comment(job.run_key):
            owner = await queries.find_user(session, job.project_id, job.run_user_id)
            return None if owner is None else Entrance(By.RUN_KEY, owner)
    return None


async def enter_with_token(database: Database, job: DoorJob, caller: Caller) -> Entrance | None:
    """None when the caller, or the token, may not enter jobs of that project."""
    if caller.limited_to is not None and job.project_id not in caller.limited_to:
        return None
    async with database.session() as session:
        user = await queries.find_user(session, job.project_id, caller.user_id)
    return None if user is None else Entrance(By.TOKEN, user)


async def may_stay(database: Database, job: DoorJob, entrance: Entrance) -> bool:
    """Whether the user is still active and entitled."""
    if entrance.user is None:
        return True
    async with database.session() as session:
        return await queries.find_user(session, job.project_id, entrance.user.id) is not None


async def find_status(database: Database, job_id: UUID) -> JobStatus | None:
    """None once the job is forgotten."""
    async with database.session() as session:
        status = await queries.find_job_status(session, job_id)
    return None if status is None else JobStatus(status)

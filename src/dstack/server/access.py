"""Who may do what: tokens and roles. Used by the REST API, the proxy and everything else that people reach.

Answers are kept in memory and dropped when a wake-up `tokens` or `members` says that something changed, so a
request of a known user asks the database nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import TooManyAttempts
from dstack.core.projects import ProjectRole
from dstack.core.tokens import is_mistyped
from dstack.core.users import GlobalRole
from dstack.server import clock
from dstack.server.db.engine import Database
from dstack.server.db.errors import DatabaseError
from dstack.server.db.tables import MemberRow, ProjectRow, UserRow, UserTokenRow

MAX_CACHED_CALLERS = 10_000
USE_NOTED_EVERY = timedelta(hours=1)
"""How exact `last_used_at` of a named token is."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProjectAccess:
    """What a caller needs to know of a project to be let in."""

    id: UUID
    name: str
    owner_id: UUID
    is_public: bool
    roles: dict[UUID, ProjectRole]
    """By user."""


@dataclass(frozen=True)
class NamedToken:
    """A further token of a user, and what it is limited to (better B19)."""

    id: UUID
    expires_at: datetime | None = None
    services_only: bool = False
    project_ids: frozenset[UUID] | None = None
    """None: all of the user."""


@dataclass(frozen=True)
class Caller:
    """Whoever makes a request. `token` is None with the user's first token, which has no limits."""

    user_id: UUID
    username: str
    global_role: GlobalRole
    token: NamedToken | None = None

    @property
    def limited_to(self) -> frozenset[UUID] | None:
        """The only projects that the token opens; None: all of the user."""
        return None if self.token is None else self.token.project_ids

    @property
    def is_admin(self) -> bool:
        """Of the whole server, which a token for some projects never is."""
        return self.global_role is GlobalRole.ADMIN and self.limited_to is None

    @property
    def expires_at(self) -> datetime | None:
        """When the token ends."""
        return None if self.token is None else self.token.expires_at

    def may_see(self, project: ProjectAccess) -> bool:
        """Whether the token is for that project, whatever its user may do there."""
        return self.limited_to is None or project.id in self.limited_to

    def role_in(self, project: ProjectAccess) -> ProjectRole | None:
        """An admin of the server acts as an admin of every project."""
        if not self.may_see(project):
            return None
        return ProjectRole.ADMIN if self.global_role is GlobalRole.ADMIN else project.roles.get(self.user_id)


@dataclass(frozen=True)
class DefaultPermissions:
    """`default_permissions` of config.yml."""

    allow_non_admins_create_projects: bool = True
    allow_non_admins_manage_ssh_fleets: bool = True
    allow_managers_manage_secrets: bool = False

    def may_create_projects(self, role: GlobalRole) -> bool:
        return role is GlobalRole.ADMIN or self.allow_non_admins_create_projects

    def may_manage_ssh_fleets(self, is_admin: bool, role: ProjectRole | None) -> bool:
        return is_admin or role is ProjectRole.ADMIN or self.allow_non_admins_manage_ssh_fleets

    def may_manage_secrets(self, is_admin: bool, role: ProjectRole | None) -> bool:
        if role is ProjectRole.MANAGER:
            return is_admin or self.allow_managers_manage_secrets
        return is_admin or role is ProjectRole.ADMIN


def hash_token(token: str) -> str:
    """What a token is looked up by: SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


class Access:
    """Looks up callers and projects. `close()` ends the listening for changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._callers: OrderedDict[str, Caller] = OrderedDict()
        self._projects: dict[str, ProjectAccess] = {}
        self._generation = 0
        self._uses: dict[UUID, datetime] = {}
        self._end_listening = database.wakeups.listen(self._on_wakeup)

    def close(self) -> None:
        self._end_listening()

    async def authenticate(self, token: str) -> Caller | None:
        """The active user of that token; None when there is none or it has expired."""
        token_hash = hash_token(token)
        caller = self._callers.get(token_hash)
        if caller is None and not is_mistyped(token):
            generation = self._generation
            caller = await self._load_caller(token_hash)
            if caller is not None and generation == self._generation:
                self._callers[token_hash] = caller
                if len(self._callers) > MAX_CACHED_CALLERS:
                    self._callers.popitem(last=False)
        if caller is None or caller.token is None:
            return caller
        now = clock.now()
        if caller.expires_at is not None and caller.expires_at <= now:
            return None
        await self._note_use(caller.token.id, now)
        return caller

    async def _note_use(self, token_id: UUID, now: datetime) -> None:
        """Writes `last_used_at`, seldom. A database that cannot be written now refuses nobody."""
        last = self._uses.get(token_id)
        if last is not None and now - last < USE_NOTED_EVERY:
            return
        if len(self._uses) >= MAX_CACHED_CALLERS:
            self._uses.clear()
        self._uses[token_id] = now
        try:
            async with self._database.transaction() as session:
                await session.execute(
                    update(UserTokenRow).where(UserTokenRow.id == token_id).values(last_used_at=now)
                )
        except DatabaseError as error:
            logger.warning("The last use of a token was not noted: %s", error)

    async def find_project(self, name: str) -> ProjectAccess | None:
        """The project of that name with its members; None when there is none."""
        project = self._projects.get(name)
        if project is not None:
            return project
        generation = self._generation
        project = await self._load_project(name)
        if project is not None and generation == self._generation:
            self._projects[name] = project
        return project

    async def _load_caller(self, token_hash: str) -> Caller | None:
        async with self._database.session() as session:
            row = (
                await session.execute(
                    select(UserRow).where(
                        UserRow.token_hash == token_hash, UserRow.active.is_(True), UserRow.deleted.is_(False)
                    )
                )
            ).scalar_one_or_none()
            if row is None:
                return await _load_named(session, token_hash)
        if not hmac.compare_digest(row.token_hash, token_hash):
            return None
        return Caller(row.id, row.name, GlobalRole(row.global_role))

    async def _load_project(self, name: str) -> ProjectAccess | None:
        async with self._database.session() as session:
            row = (
                await session.execute(
                    select(ProjectRow.id, ProjectRow.owner_id, ProjectRow.is_public).where(
                        ProjectRow.name == name, ProjectRow.deleted.is_(False)
                    )
                )
            ).one_or_none()
            if row is None:
                return None
            members = await session.execute(
                select(MemberRow.user_id, MemberRow.project_role).where(MemberRow.project_id == row.id)
            )
            roles = {user_id: ProjectRole(role) for user_id, role in members}
        return ProjectAccess(row.id, name, row.owner_id, row.is_public, roles)

    def _on_wakeup(self, name: str) -> None:
        if name in ("tokens", "members"):
            self._generation += 1
            self._callers.clear()
            self._projects.clear()


async def _load_named(session: AsyncSession, token_hash: str) -> Caller | None:
    found = await session.execute(
        select(UserTokenRow, UserRow)
        .join(UserRow, UserRow.id == UserTokenRow.user_id)
        .where(UserTokenRow.token_hash == token_hash, UserRow.active.is_(True), UserRow.deleted.is_(False))
    )
    pair = found.one_or_none()
    if pair is None or not hmac.compare_digest(pair[0].token_hash, token_hash):
        return None
    row, user = pair
    limit = None if row.project_ids is None else frozenset(UUID(id_) for id_ in json.loads(row.project_ids))
    token = NamedToken(row.id, row.expires_at, row.services_only, limit)
    return Caller(user.id, user.name, GlobalRole(user.global_role), token)


@dataclass
class _Attempts:
    """Failed attempts of one address: a bucket that leaks."""

    level: float = 0.0
    at: float = 0.0


@dataclass
class FailedAttempts:
    """Limits how often an address may show tokens that nobody has; good tokens never come here (better B18).

    `allowed` failures at once, then one more each `seconds_per_attempt`.
    """

    allowed: int = 20
    seconds_per_attempt: float = 3.0
    clock: Callable[[], float] = time.monotonic
    max_addresses: int = 10_000
    _attempts: OrderedDict[str, _Attempts] = field(default_factory=OrderedDict)

    def failed(self, address: str) -> float | None:
        """Counts one; returns the seconds to wait when the address has had too many, else None."""
        now = self.clock()
        attempts = self._attempts.setdefault(address, _Attempts(at=now))
        self._attempts.move_to_end(address)
        if len(self._attempts) > self.max_addresses:
            self._attempts.popitem(last=False)
        attempts.level = max(0.0, attempts.level - (now - attempts.at) / self.seconds_per_attempt)
        attempts.at = now
        if attempts.level >= self.allowed:
            return (attempts.level - self.allowed + 1) * self.seconds_per_attempt
        attempts.level += 1
        return None

    def wait_seconds(self, address: str) -> float | None:
        """How long the address has to wait, without counting; None when it has not had too many."""
        attempts = self._attempts.get(address)
        if attempts is None:
            return None
        level = attempts.level - (self.clock() - attempts.at) / self.seconds_per_attempt
        return None if level < self.allowed else (level - self.allowed + 1) * self.seconds_per_attempt

    def count(self, address: str) -> None:
        """Counts one. Raises TooManyAttempts when the address has had too many."""
        wait = self.failed(address)
        if wait is not None:
            raise TooManyAttempts(
                "Too many failed attempts from this address; wait and check the token",
                retry_after_seconds=max(1, round(wait)),
            )

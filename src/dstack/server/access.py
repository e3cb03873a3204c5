"""Who may do what: tokens and roles. Used by the REST API, the proxy and everything else that people reach.

Answers are kept in memory and dropped when a wake-up `tokens` or `members` says that something changed, so a
request of a known user asks the database nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import select

from dstack.core.projects import ProjectRole
from dstack.core.users import GlobalRole
from dstack.server.db.engine import Database
from dstack.server.db.tables import MemberRow, ProjectRow, UserRow

MAX_CACHED_CALLERS = 10_000


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
class Caller:
    """Whoever makes a request."""

    user_id: UUID
    username: str
    global_role: GlobalRole

    @property
    def is_admin(self) -> bool:
        """Of the whole server."""
        return self.global_role is GlobalRole.ADMIN

    def role_in(self, project: ProjectAccess) -> ProjectRole | None:
        """An admin of the server acts as an admin of every project."""
        return ProjectRole.ADMIN if self.is_admin else project.roles.get(self.user_id)


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
        self._end_listening = database.wakeups.listen(self._on_wakeup)

    def close(self) -> None:
        self._end_listening()

    async def authenticate(self, token: str) -> Caller | None:
        """The active user of that token; None when there is none."""
        token_hash = hash_token(token)
        caller = self._callers.get(token_hash)
        if caller is not None:
            return caller
        generation = self._generation
        caller = await self._load_caller(token_hash)
        if caller is not None and generation == self._generation:
            self._callers[token_hash] = caller
            if len(self._callers) > MAX_CACHED_CALLERS:
                self._callers.popitem(last=False)
        return caller

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
        if row is None or not hmac.compare_digest(row.token_hash, token_hash):
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

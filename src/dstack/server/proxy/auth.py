"""Who may use a project's services: its members, by their tokens.

A permission is remembered until its token expires or a wake-up `tokens` or `members` says that it may have ended,
but for an hour at most; refusals are not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone

from dstack.server import clock
from dstack.server.access import Access, FailedAttempts
from dstack.server.clock import Clock
from dstack.server.wakeups import Wakeups

MAX_CACHED_PERMISSIONS = 10_000
REMEMBERED_FOR = timedelta(hours=1)
"""So that the use of a token is noted now and then."""
EMPTIED_BY = frozenset(("tokens", "members"))
NEVER = datetime.max.replace(tzinfo=timezone.utc)

MayUse = Callable[[str, str, str], Awaitable[datetime | None]]
"""Until when the owner of a token (first) may use the services of a project (second); None: not at all.

The third is the client's address. Raises TooManyAttempts when that has shown too many unknown tokens."""


def members_only(access: Access, attempts: FailedAttempts) -> MayUse:
    async def may_use(token: str, project_name: str, address: str) -> datetime | None:
        caller = await access.authenticate(token)
        if caller is None:
            attempts.count(address)
            return None
        project = await access.find_project(project_name)
        if project is None or caller.role_in(project) is None:
            return None
        return caller.expires_at or NEVER

    return may_use


class ServerProxyAuth:
    """A `ProxyAuth`. `close()` ends the listening for changes."""

    def __init__(self, may_use: MayUse, wakeups: Wakeups, now: Clock = clock.now) -> None:
        self._may_use = may_use
        self._now = now
        self._allowed: dict[tuple[str, str], datetime] = {}
        self._generation = 0
        self._end_listening = wakeups.listen(self._on_wakeup)

    def close(self) -> None:
        self._end_listening()

    def is_allowed(self, project: str, token: str, address: str) -> bool | Awaitable[bool]:
        until = self._allowed.get((project, token))
        return True if until is not None and self._now() < until else self._ask(project, token, address)

    async def _ask(self, project: str, token: str, address: str) -> bool:
        generation = self._generation
        until = await self._may_use(token, project, address)
        if until is None:
            return False
        if generation == self._generation:
            if len(self._allowed) >= MAX_CACHED_PERMISSIONS:
                self._allowed.clear()
            self._allowed[(project, token)] = min(until, self._now() + REMEMBERED_FOR)
        return True

    def _on_wakeup(self, name: str) -> None:
        if name in EMPTIED_BY:
            self._generation += 1
            self._allowed.clear()

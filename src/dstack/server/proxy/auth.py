"""Who may use a project's services: its members, by their tokens.

A permission is remembered until a wake-up `tokens` or `members` says that one may have ended; refusals are not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from dstack.server.access import Access
from dstack.server.wakeups import Wakeups

MAX_CACHED_PERMISSIONS = 10_000
EMPTIED_BY = frozenset(("tokens", "members"))

MayUse = Callable[[str, str], Awaitable[bool]]
"""Whether the owner of a token (first) may use the services of a project (second)."""


def members_only(access: Access) -> MayUse:
    async def may_use(token: str, project_name: str) -> bool:
        caller = await access.authenticate(token)
        project = await access.find_project(project_name)
        return caller is not None and project is not None and caller.role_in(project) is not None

    return may_use


class ServerProxyAuth:
    """A `ProxyAuth`. `close()` ends the listening for changes."""

    def __init__(self, may_use: MayUse, wakeups: Wakeups) -> None:
        self._may_use = may_use
        self._allowed: set[tuple[str, str]] = set()
        self._generation = 0
        self._end_listening = wakeups.listen(self._on_wakeup)

    def close(self) -> None:
        self._end_listening()

    def is_allowed(self, project: str, token: str) -> bool | Awaitable[bool]:
        return True if (project, token) in self._allowed else self._ask(project, token)

    async def _ask(self, project: str, token: str) -> bool:
        generation = self._generation
        is_allowed = await self._may_use(token, project)
        if is_allowed and generation == self._generation:
            if len(self._allowed) >= MAX_CACHED_PERMISSIONS:
                self._allowed.clear()
            self._allowed.add((project, token))
        return is_allowed

    def _on_wakeup(self, name: str) -> None:
        if name in EMPTIED_BY:
            self._generation += 1
            self._allowed.clear()

"""The answer to "who am I?", kept as text: every command of the client begins with it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from dstack.core.canonical import dump_json
from dstack.server.access import Caller
from dstack.server.wakeups import Wakeups

if TYPE_CHECKING:
    from dstack.server.operations.context import Context

MAX_ANSWERS = 1000


class OwnUsers:
    """Emptied by the wake-up `tokens`, which follows every change of a user."""

    def __init__(self, wakeups: Wakeups) -> None:
        self._answers: dict[UUID, bytes] = {}
        self._generation = 0
        wakeups.listen(self._on_wakeup)

    async def get(self, ctx: Context, caller: Caller) -> bytes:
        """Canonical JSON of the caller's `UserWithCreds`."""
        answer = self._answers.get(caller.user_id)
        if answer is not None:
            return answer
        from dstack.server.operations import users  # noqa: PLC0415 - users needs the context, which holds us

        generation = self._generation
        answer = dump_json(await users.get_my_user(ctx, caller)).encode()
        if generation == self._generation and len(self._answers) < MAX_ANSWERS:
            self._answers[caller.user_id] = answer
        return answer

    def _on_wakeup(self, name: str) -> None:
        if name == "tokens":
            self._generation += 1
            self._answers.clear()

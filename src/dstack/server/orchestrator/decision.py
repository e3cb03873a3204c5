"""What a rule answers and what the engine does with it: the types every kind shares.

The engine alone: takes the lease, `load`s the snapshot, calls `decide`, writes status and whatever
`record` adds in one transaction guarded by the lease, performs the effects outside of it, writes what
they saw as facts, wakes the keys. A key says *which*, never *why*.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


class Kind(str, enum.Enum):
    """The kinds of resources that the orchestrator drives."""

    RUN = "run"
    JOB = "job"
    INSTANCE = "instance"
    FLEET = "fleet"
    VOLUME = "volume"
    GATEWAY = "gateway"
    GATEWAY_REPLICA = "gateway_replica"
    """One machine of a gateway."""
    PLACEMENT = "placement"
    """One per project: which waiting job gets which capacity, in one queue by (priority, age)."""


class Key(NamedTuple):
    """Names one resource. `id` is its UUID; for `placement` the project's."""

    kind: Kind
    id: UUID


class Effect:
    """Base of the frozen dataclasses that say what may be done to the world; each kind has its own."""

    __slots__ = ()


StatusT = TypeVar("StatusT", bound=enum.Enum)
SnapshotT = TypeVar("SnapshotT")


@dataclass(frozen=True)
class Decision(Generic[StatusT]):
    """What should be, given what is known."""

    status: StatusT
    reason: Any = None
    """Termination reason, recorded with a change of status."""
    message: str | None = None
    """For people: recorded beside the reason and told in the event."""
    writes: tuple[Any, ...] = ()
    """What else to record in the same transaction; each kind's `record` knows its own write classes."""
    effects: tuple[Effect, ...] = ()
    wake: tuple[Key, ...] = ()
    """Whom the change concerns; woken after the commit."""
    look_again_at: datetime | None = None
    """Becomes the row's `wake_at`, so it survives a restart; None clears it."""
    rest_until: datetime | None = None
    """In place of `look_again_at`: becomes `wake_at` when the effects have ended. Until then the key stays as due
    as it was, for whoever goes on after a server that stopped in the middle."""
    again: bool = False
    """Process this key once more right after the effects, without waiting for a wake-up."""


Facts = Mapping[str, Any]
"""Column values of the key's own row that an effect observed."""
"""Column values of the key's own row that an effect observed."""


class TerminalEffectError(Exception):
    """An effect failed in a way that repeating will not mend; `facts` tells the next `decide` so."""

    def __init__(self, message: str, facts: Facts | None = None) -> None:
        super().__init__(message)
        self.facts: Facts = facts or {}


EffectHandler = Callable[[Any, Any, Key], Awaitable[Facts | None]]
"""`async def ensure_x(effect, world, key) -> Facts | None`; idempotent. `world` is the kind's dependencies."""


class StaleSnapshot(Exception):
    """`record` found that what the decision was based on has changed; the engine loads and decides again."""


class ResourceKind(Protocol[SnapshotT]):
    """What a kind gives the engine. Built in `snapshot.py` of each kind."""

    kind: Kind

    async def load(self, session: AsyncSession, id: UUID) -> SnapshotT | None:
        """A fixed number of queries; None when the row is gone."""
        ...

    def decide(self, snapshot: SnapshotT, now: datetime) -> Decision[Any]:
        """Pure."""
        ...

    async def record(
        self, session: AsyncSession, snapshot: SnapshotT, decision: Decision[Any], now: datetime
    ) -> None:
        """Everything but the status column, `wake_at` and the lease, which the engine writes; events included.

        Called when the status changes or the decision has writes, a reason or a message.
        """
        ...

    def priority(self, snapshot: SnapshotT) -> int:
        """Higher first in the queue."""
        ...

    effects: Mapping[type[Effect], EffectHandler]


def rank(priority: int, *, has_begun: bool) -> int:
    """For `ResourceKind.priority`: what has been given capacity goes before what is as important and waits."""
    return 2 * priority + has_begun


@dataclass(frozen=True)
class Outcome:
    """What one pass over a key did; returned by the engine for tests and metrics."""

    key: Key
    decision: Decision[Any] | None
    facts: Facts = field(default_factory=dict)
    error: BaseException | None = None

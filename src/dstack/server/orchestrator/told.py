"""How a change of status is told: an event, and a name for those who follow the run."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.events import EventTargetType
from dstack.server import events
from dstack.server.db.engine import wake


def target(type: EventTargetType, id: UUID, name: str, project_id: UUID) -> events.Target:
    """What an event is about."""
    return events.Target(type.value, id, name, project_id)


def change(what: str, old: str, new: str, *, reason: str | None = None, message: str | None = None) -> str:
    """`Job status changed RUNNING -> TERMINATING. Termination reason: DONE_BY_RUNNER`."""
    text = f"{what} status changed {old.upper()} -> {new.upper()}"
    if reason:
        text += f". Termination reason: {reason.upper()}"
    return f"{text} ({message})" if message else text


async def record(session: AsyncSession, text: str, *targets: events.Target) -> None:
    """By the system."""
    await events.record(session, text, actor=None, targets=targets)


def wake_followers(session: AsyncSession, project_id: UUID, run_id: UUID) -> None:
    """Tells the event streams that something of the run has changed."""
    wake(session, f"changed:run:{project_id}:{run_id}")

"""The one place that asks what time it is; everything else is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timezone

Clock = Callable[[], datetime]


def now() -> datetime:
    """Aware, in UTC."""
    return datetime.now(timezone.utc)


async def happens_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for the event, so long at most. `asyncio.wait_for` would lose a cancellation that comes just then
    (Python before 3.12), and whoever cancels would wait for ever."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
    return bool(done)

"""What the API tells of the requests to a service: of the last minute, by all servers together."""

from __future__ import annotations

from typing import Any

from dstack.proxy.histogram import percentile
from dstack.server.db.queries.loads import Seen

WINDOW = 60
"""In seconds."""


def to_document(seen: Seen) -> dict[str, Any]:
    """Durations in seconds; null where there was no request that would tell."""
    counts = seen.windows[WINDOW]
    return {
        "window": WINDOW,
        "requests": counts.requests,
        "errors": counts.errors,
        "in_flight": seen.in_flight,
        "latency": _durations(counts.latency, counts.seconds, counts.requests),
        "first_byte": _durations(counts.first_byte, counts.waited, counts.answered),
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
    }


def _durations(buckets: dict[int, int], seconds: float, count: int) -> dict[str, float] | None:
    if not count:
        return None
    shares = {name: percentile(buckets, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return {"mean": round(seconds / count, 4)} | {
        name: round(value, 4) for name, value in shares.items() if value is not None
    }

"""What a client is told when its request failed before an answer began."""

from __future__ import annotations

from dstack.proxy.headers import BadMessage
from dstack.proxy.pool import ReplicaTimeout
from dstack.proxy.request_body import BodyTooLarge


def refusal(
    error: Exception | None, run: str, *, timeout: float, is_untaken: bool, is_body_awaited: bool
) -> tuple[int, str]:
    """Status and text. `timeout` in seconds; `is_untaken`: the replica takes no more of the body;
    `is_body_awaited`: the client has still to send some of it."""
    if isinstance(error, BodyTooLarge):
        return 413, str(error)
    if isinstance(error, ReplicaTimeout) and is_untaken:
        return 504, f"Service {run} did not take the request within {timeout:g} s"
    if isinstance(error, ReplicaTimeout) and is_body_awaited:
        return 408, "The request's body did not arrive in time"
    if isinstance(error, ReplicaTimeout):
        return 504, f"Service {run} did not answer within {timeout:g} s"
    reason = str(error) if isinstance(error, BadMessage) else "its replica can't be reached or went away"
    return 502, f"Service {run}: {reason}"

"""Fault injection for the crash matrix: the process kills itself at a named point of the loop.

``DSTACK_TEST_CRASH_AT="<kind>:<point>:<n>"`` sends SIGKILL the n-th time that the kind reaches the point. Points:
``before-record after-record before-effect after-effect before-facts after-facts``; the two about effects
also with the effect's class: ``before-effect.EnsureTask``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from dstack.server.orchestrator.decision import Kind

VARIABLE = "DSTACK_TEST_CRASH_AT"

CrashPoints = Callable[[Kind, str], None]
"""Called at each point the loop passes."""


def none(kind: Kind, point: str) -> None:
    """The ordinary case: nothing happens."""


def from_text(text: str | None) -> CrashPoints:
    """Of the variable's value; None or empty: nothing ever happens. Raises ValueError for another form."""
    if not text:
        return none
    parts = text.split(":")
    if len(parts) != 3 or not parts[2].isdigit() or int(parts[2]) < 1:
        raise ValueError(f"{VARIABLE} is {text!r}; expected <kind>:<point>:<n>, such as job:after-effect:2")
    wanted = (Kind(parts[0]), parts[1])
    left = int(parts[2])

    def hit(kind: Kind, point: str) -> None:
        nonlocal left
        if (kind, point) == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hit

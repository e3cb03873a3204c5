"""Every request on its way is two open files: one towards the client, one towards the replica."""

from __future__ import annotations

import resource

ENOUGH = 65536
"""Not as many as the system may allow: programs that are started from here inherit it, and some of them go through
all possible numbers to close what is open."""


def allow_many_open_files() -> int:
    """Raises this process's own limit, often 1,024, as far as it may, to `ENOUGH` at most; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted

"""What is read of processes."""

from __future__ import annotations

import os
import time

import psutil

from dstack.agent.processes import ran_seconds


def test_how_long_a_process_has_run_is_told_without_the_clock() -> None:
    ran = ran_seconds(os.getpid())
    assert ran is not None
    assert abs(ran - (time.time() - psutil.Process().create_time())) < 2
    assert ran_seconds(2**22 + 1) is None

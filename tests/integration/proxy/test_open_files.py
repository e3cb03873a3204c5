"""How many open files a process may have, in processes whose limits are set for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.e2e.harness import ROOT

PROGRAM = """
import resource
from dstack.proxy.open_files import allow_many_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(allow_many_open_files(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "expected"), [(256, 1000, 1000), (1000, 1000, 1000)])
def test_the_limit_is_raised_as_far_as_it_may(soft: int, hard: int, expected: int) -> None:
    program = PROGRAM.format(soft=soft, hard=hard)
    said = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT / "src")}, stdout=subprocess.PIPE, check=True
    ).stdout
    assert said.split() == [b"%d" % expected, b"%d" % expected, b"%d" % hard]

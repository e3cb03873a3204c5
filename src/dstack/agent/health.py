"""How well a host is: room on its disk, its accelerators, Docker. Looked at each minute, told when it changes."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import subprocess
from typing import Any, Callable, Dict, List, Sequence

from dstack.agent.gpu.detect import TOOL_SECONDS, detect
from dstack.agent.gpu.parse import MIB, Gpu, rows

HEALTHY, WARNING, FAILURE = "healthy", "warning", "failure"
_ORDER = (HEALTHY, WARNING, FAILURE)
CHECK_SECONDS = 60.0
LITTLE_SPACE_MIB = 1024
NO_SPACE_MIB = 100
_ECC = ["nvidia-smi", "--query-gpu=uuid,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits"]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `status` is `warning` or `failure`."""

    status: str
    message: str


def report(problems: Sequence[Problem]) -> Dict[str, Any]:
    """What `Event.health` tells: the worst of them, and all of them."""
    worst = max((one.status for one in problems), key=_ORDER.index, default=HEALTHY)
    return {"status": worst, "problems": [dataclasses.asdict(one) for one in problems]}


def look(folder: str, gpus: List[Gpu]) -> List[Problem]:
    """`gpus`: those that the host had when the agent started. Blocks as long as the vendors' tools take."""
    found = disk_problems(folder, shutil.disk_usage(folder).free)
    if gpus:
        found += gpu_problems(gpus, detect()[0])
    if any(gpu.vendor == "nvidia" for gpu in gpus):
        found += _memory_problems()
    return found


def disk_problems(folder: str, free_bytes: int) -> List[Problem]:
    """Where the agent keeps the logs of jobs."""
    free = free_bytes // MIB
    if free >= LITTLE_SPACE_MIB:
        return []
    # Steps, so that each megabyte is not told as news.
    if free < NO_SPACE_MIB:
        return [Problem(FAILURE, f"less than {NO_SPACE_MIB} MiB are free for {folder}")]
    return [Problem(WARNING, f"less than {LITTLE_SPACE_MIB} MiB are free for {folder}")]


def gpu_problems(before: Sequence[Gpu], now: Sequence[Gpu]) -> List[Problem]:
    """Accelerators that were there and that their vendor's tool no longer tells of."""
    there = {gpu.id for gpu in now}
    lost = [gpu for gpu in before if gpu.id not in there]
    return [Problem(FAILURE, f"the accelerator {gpu.name} ({gpu.id}) is no longer there") for gpu in lost]


def _memory_problems() -> List[Problem]:
    try:
        done = subprocess.run(_ECC, capture_output=True, text=True, timeout=TOOL_SECONDS, check=True)
        return memory_problems(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        _log.warning("nvidia-smi does not tell of errors in memory: %s", error)
        return []


def memory_problems(text: str) -> List[Problem]:
    """From the output of `nvidia-smi`: accelerators with errors that their memory could not correct."""
    found = []
    for id, count in rows(text, 2):
        if count.isdigit() and int(count):
            found.append(Problem(FAILURE, f"{count} uncorrected errors in the memory of the accelerator {id}"))
    return found


class HealthState:
    """The newest report; `on_change` is called when there is another one."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.current: Dict[str, Any] = {}
        """Empty until the host was looked at."""

    def put(self, problems: Sequence[Problem]) -> None:
        told = report(problems)
        if told != self.current:
            self.current = told
            self._on_change()

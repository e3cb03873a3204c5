"""How much CPU and memory a task uses, from what Linux or Docker tells."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any, Dict, List, Tuple

from dstack.agent import processes
from dstack.agent.protocol import GpuMetrics, TaskMetrics

MICRO = 1_000_000
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Usage:
    """`cpu_usage_micro` counts from the start of the task; the working set is what cannot be taken back."""

    cpu_usage_micro: int
    memory_usage_bytes: int
    memory_working_set_bytes: int


def as_metrics(usage: Usage, gpus: List[GpuMetrics]) -> TaskMetrics:
    """As the protocol tells it, at this moment."""
    told = [gpu.to_json() for gpu in gpus]
    return TaskMetrics(int(time.time() * MICRO), **dataclasses.asdict(usage), gpus=told)


class NotRunning(Exception):
    """The task has no processes to measure now; the message is for the user."""


def of_processes(root: int) -> Usage:
    """Of all processes below `root`. CPU time of those that have ended counts too, as their parents collected it.

    Raises NotRunning when `root` is gone. Memory that processes share counts once for each.
    """
    usage = [0, 0, 0]
    for pid in processes.descendants(root, with_zombies=True):
        try:
            usage[0] += _cpu_micro(pid)
            resident, working_set = parse_status(_read(pid, "status"))
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile: its parent has collected its CPU time
            continue
        usage[1] += resident
        usage[2] += working_set
    try:
        usage[0] += _cpu_micro(root)
    except (FileNotFoundError, ProcessLookupError):
        raise NotRunning("the processes of the task have ended") from None
    return Usage(*usage)


def _read(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}", errors="replace") as file:
        return file.read()


def _cpu_micro(pid: int) -> int:
    return parse_stat(_read(pid, "stat")) * MICRO // _TICKS_PER_SECOND


def parse_stat(text: str) -> int:
    """CPU time in clock ticks of a process and of its children that it collected, from `/proc/PID/stat`."""
    fields = text.rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15])


def parse_status(text: str) -> Tuple[int, int]:
    """(resident, working set) in bytes from `/proc/PID/status`; a zombie has neither."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssShmem"):
            found[name] = int(value.split()[0]) * 1024
    return found.get("VmRSS", 0), found.get("RssAnon", 0) + found.get("RssShmem", 0)


def parse_docker_stats(stats: Dict[str, Any]) -> Usage:
    """Docker's `GET /containers/{id}/stats`, on hosts with cgroup version 1 or 2.

    Raises NotRunning for a container without processes, of which Docker tells nothing.
    """
    memory = stats.get("memory_stats") or {}
    if "usage" not in memory:
        raise NotRunning("the container does not run")
    details = memory.get("stats") or {}
    cached = details.get("total_inactive_file", details.get("inactive_file", 0))  # version 1, version 2
    used = int(memory["usage"])
    return Usage(int(stats["cpu_stats"]["cpu_usage"]["total_usage"]) // 1000, used, max(0, used - int(cached)))

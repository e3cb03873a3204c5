"""The table of `dstack metrics`: a line of bars and the newest value, for the cores and for each accelerator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dstack.cli.output.values import format_size

HEADERS = ("JOB", "", "UTILIZATION", "MEMORY")
BARS = "▁▂▃▄▅▆▇█"
BAR_COUNT = 10
NO_DATA = "no data"
MIB = 1024 * 1024


def job_rows(job_name: str, series: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row for the cores and one for each accelerator; `series` as the API answers them, newest first."""
    values = {metric["name"]: metric["values"] for metric in series}
    if not values.get("cpu_usage_percent"):
        return [[job_name, "cpu", NO_DATA, NO_DATA]]
    cores = values.get("cpus_detected_num") or [1]
    load = [percent / (cores[0] or 1) for percent in values["cpu_usage_percent"]]
    used, total = values.get("memory_working_set_bytes", []), values.get("memory_total_bytes", [])
    rows = [[job_name, "cpu", _load(load), _memory(used, total)]]
    for number in range((values.get("gpus_detected_num") or [0])[0]):
        load = values.get(f"gpu_util_percent_gpu{number}", [])
        used = values.get(f"gpu_memory_usage_bytes_gpu{number}", [])
        row = ["", f"gpu={number}", _load(load), _memory(used, values.get("gpu_memory_total_bytes", []))]
        rows.append(row)
    return rows


def sparkline(values: Sequence[float], full: float) -> str:
    """Bars of the last values, the newest at the right; `full` is the highest bar."""
    newest = list(reversed(values[:BAR_COUNT]))
    top = len(BARS) - 1
    levels = [round(max(0.0, min(1.0, value / full)) * top) if full else 0 for value in newest]
    return "".join(BARS[level] for level in levels)


def _load(values: Sequence[float]) -> str:
    return f"{sparkline(values, 100)} {values[0]:.0f}%" if values else NO_DATA


def _memory(used: Sequence[int], total: Sequence[int]) -> str:
    """In use and, where it is known, of how much."""
    if not used:
        return NO_DATA
    limit = f"/{_size(total[0])}" if total else ""
    return f"{sparkline(used, total[0] if total else max(used))} {_size(used[0])}{limit}"


def _size(value: int) -> str:
    return format_size(round(value / MIB))

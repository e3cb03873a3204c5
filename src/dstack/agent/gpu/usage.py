"""What the vendors' tools print of memory and load, by the id of the accelerator (`gpu.parse.Gpu.id`).

Pure; other text raises ValueError or KeyError. What a tool does not tell (`N/A`) counts as 0.
"""

from __future__ import annotations

import json
from typing import Any, Dict

from dstack.agent.gpu.parse import MIB, rows
from dstack.agent.protocol import GpuMetrics

Measured = Dict[str, GpuMetrics]


def parse_nvidia(text: str) -> Measured:
    """`nvidia-smi --query-gpu=uuid,memory.used,utilization.gpu --format=csv,noheader,nounits`."""
    return {row[0]: GpuMetrics(_number(row[1]) * MIB, _number(row[2])) for row in rows(text, 3)}


def parse_intel(text: str) -> Measured:
    """`hl-smi -Q index,memory.used,utilization.aip -f csv,noheader,nounits`."""
    return {row[0]: GpuMetrics(_number(row[1]) * MIB, _number(row[2])) for row in rows(text, 3)}


def parse_amd_smi(text: str) -> Measured:
    """`amd-smi metric --usage --mem-usage --json`, with or without the `gpu_data` around it."""
    data = json.loads(text)
    entries = data.get("gpu_data", []) if isinstance(data, dict) else data
    measured = {}
    for entry in entries:
        used, load = entry["mem_usage"]["used_vram"], entry["usage"]
        busy = load.get("gfx_activity", "N/A") if isinstance(load, dict) else load
        measured[str(entry["gpu"])] = GpuMetrics(_quantity(used) * MIB, _quantity(busy))
    return measured


def parse_rocm_smi(text: str) -> Measured:
    """`rocm-smi --showuse --showmeminfo vram --json`."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return {
        card[4:]: GpuMetrics(_number(entry["VRAM Total Used Memory (B)"]), _number(entry["GPU use (%)"]))
        for card, entry in data.items()
        if card.startswith("card")
    }


def _quantity(value: Any) -> int:
    """`{"value": 3, "unit": "MB"}` and `"3 MB"` alike."""
    return _number(str(value["value"] if isinstance(value, dict) else value))


def _number(text: str) -> int:
    """The whole number at the start; 0 for `N/A`, `[N/A]`, `[Not Supported]` and the like."""
    word = (text.split() or [""])[0].rstrip("%")
    if word.strip("[]").lower() in ("n/a", "not", "unknown"):
        return 0
    return int(float(word))

"""What the vendors' tools print, as lists of accelerators. Pure; other text raises ValueError or KeyError."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict, List, Tuple

MIB = 1024 * 1024
TENSTORRENT_MEMORY_MIB = {"n150": 12288, "n300": 12288, "e75": 8192, "e150": 8192, "p100": 28672, "p150": 32768}
"""Of one chip, as `tt-smi` does not tell it."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """`id` is what the vendor's environment variable and Docker take."""

    vendor: str
    name: str
    memory_mib: int
    id: str


Parsed = Tuple[List[Gpu], str]
"""Accelerators and the version of their driver."""


def parse_nvidia(text: str) -> Parsed:
    """`nvidia-smi --query-gpu=uuid,name,memory.total,driver_version --format=csv,noheader,nounits`."""
    found = rows(text, 4)
    gpus = [Gpu("nvidia", _without(row[1], "NVIDIA "), _mib(row[2]), row[0]) for row in found]
    return gpus, found[0][3] if found else ""


def parse_intel(text: str) -> Parsed:
    """`hl-smi -Q index,name,memory.total,driver_version -f csv,noheader,nounits`."""
    found = rows(text, 4)
    gpus = [Gpu("intel", row[1], _mib(row[2]), row[0]) for row in found]
    return gpus, found[0][3] if found else ""


def parse_amd_smi(text: str) -> Parsed:
    """`amd-smi static --asic --vram --driver --json`, with or without the `gpu_data` around it."""
    data = json.loads(text)
    entries = data.get("gpu_data", []) if isinstance(data, dict) else data
    gpus, driver = [], ""
    for entry in entries:
        size = _dict(entry, "vram").get("size", 0)
        mib = int(size["value"]) if isinstance(size, dict) else _mib(str(size))
        gpus.append(Gpu("amd", str(_dict(entry, "asic")["market_name"]), mib, str(entry["gpu"])))
        driver = driver or str(entry.get("driver", {}).get("version", ""))
    return gpus, driver


def parse_rocm_smi(text: str) -> Parsed:
    """`rocm-smi --showproductname --showmeminfo vram --showdriverversion --json`."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    gpus = []
    for card in sorted((name for name in data if name.startswith("card")), key=lambda name: int(name[4:])):
        entry = data[card]
        name = str(entry.get("Card Series") or entry.get("Card series") or entry.get("Card model") or "AMD GPU")
        gpus.append(Gpu("amd", name, int(entry["VRAM Total Memory (B)"]) // MIB, card[4:]))
    return gpus, str(data.get("system", {}).get("Driver version", ""))


def parse_tenstorrent(text: str) -> Parsed:
    """`tt-smi -s`: one entry a chip."""
    data = json.loads(text)
    gpus = []
    for index, entry in enumerate(_list(data, "device_info")):
        name = str(_dict(entry, "board_info")["board_type"]).split(" ")[0]
        gpus.append(Gpu("tenstorrent", name, TENSTORRENT_MEMORY_MIB.get(name.rstrip("abcdes"), 0), str(index)))
    return gpus, str(data.get("host_info", {}).get("Driver", "")).replace("TT-KMD ", "")


def rows(text: str, columns: int) -> List[List[str]]:
    """The cells of each line. Raises ValueError when a line has another number of them."""
    found = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    for row in found:
        if len(row) != columns:
            raise ValueError("expected {} columns, got {!r}".format(columns, ", ".join(row)))
    return found


def _mib(text: str) -> int:
    """`81920`, `81920 MiB` and `196592 MB` alike; the tools mean MiB by MB."""
    return int(text.split()[0])


def _without(text: str, prefix: str) -> str:
    return text[len(prefix) :] if text.startswith(prefix) else text


def _dict(data: Any, key: str) -> Dict[str, Any]:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, dict):
        raise ValueError(f"no {key!r} in it")
    return value


def _list(data: Any, key: str) -> List[Any]:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, list):
        raise ValueError(f"no {key!r} in it")
    return value

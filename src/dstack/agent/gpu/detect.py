"""Asks the vendors' tools that are installed on the host."""

from __future__ import annotations

import logging
import shutil
import subprocess
from typing import Callable, List, Tuple

from dstack.agent.gpu import parse

TOOL_SECONDS = 20
_CSV = "csv,noheader,nounits"
TOOLS: List[Tuple[List[str], Callable[[str], parse.Parsed]]] = [
    (
        ["nvidia-smi", "--query-gpu=uuid,name,memory.total,driver_version", "--format=" + _CSV],
        parse.parse_nvidia,
    ),
    (["amd-smi", "static", "--asic", "--vram", "--driver", "--json"], parse.parse_amd_smi),
    (
        ["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json"],
        parse.parse_rocm_smi,
    ),
    (["hl-smi", "-Q", "index,name,memory.total,driver_version", "-f", _CSV], parse.parse_intel),
    (["tt-smi", "-s"], parse.parse_tenstorrent),
]
_log = logging.getLogger(__name__)


def detect() -> parse.Parsed:
    """The accelerators of the first tool that finds any, and their driver; the log tells of tools that fail."""
    for command, parse_output in TOOLS:
        if shutil.which(command[0]) is None:
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS, check=True)
            gpus, driver = parse_output(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError) as error:
            _log.warning("%s does not tell of accelerators: %s", command[0], error)
            continue
        if gpus:
            return gpus, driver
    return [], ""

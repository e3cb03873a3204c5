"""What the host's accelerators are doing, by the vendors' tools."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from typing import Callable, Dict, List, Optional, Tuple

from dstack.agent.gpu import usage
from dstack.agent.protocol import GpuMetrics

TOOL_SECONDS = 10
FRESH_SECONDS = 3.0
"""All tasks of a host share what one call of the tool told, for so long."""
_CSV = "csv,noheader,nounits"
_Tool = Tuple[List[str], Callable[[str], Dict[str, GpuMetrics]]]
TOOLS: Dict[str, List[_Tool]] = {
    "nvidia": [
        (
            ["nvidia-smi", "--query-gpu=uuid,memory.used,utilization.gpu", "--format=" + _CSV],
            usage.parse_nvidia,
        )
    ],
    "amd": [
        (["amd-smi", "metric", "--usage", "--mem-usage", "--json"], usage.parse_amd_smi),
        (["rocm-smi", "--showuse", "--showmeminfo", "vram", "--json"], usage.parse_rocm_smi),
    ],
    "intel": [(["hl-smi", "-Q", "index,memory.used,utilization.aip", "-f", _CSV], usage.parse_intel)],
    "tenstorrent": [],
}
"""By vendor, the best first. Tenstorrent's tool tells neither memory nor load."""
_log = logging.getLogger(__name__)


class GpuMeter:
    """Measures the accelerators of one vendor, those of a host."""

    def __init__(self, vendor: str) -> None:
        self._tools = TOOLS[vendor]
        self._known: Dict[str, GpuMetrics] = {}
        self._known_until = 0.0
        self._measuring = asyncio.Lock()

    async def measure(self, gpu_ids: List[str]) -> List[GpuMetrics]:
        """Of these accelerators, as far as the tool tells of them."""
        async with self._measuring:
            if time.monotonic() >= self._known_until:
                self._known = await self._ask_tools()
                self._known_until = time.monotonic() + FRESH_SECONDS
        return [self._known[gpu_id] for gpu_id in gpu_ids if gpu_id in self._known]

    async def _ask_tools(self) -> Dict[str, GpuMetrics]:
        for command, parse in self._tools:
            path = shutil.which(command[0])
            text = await _output([path, *command[1:]]) if path else None
            if text is None:
                continue
            try:
                return parse(text)
            except (ValueError, KeyError, IndexError) as error:
                _log.warning("%s does not tell what accelerators do: %s", command[0], error)
        return {}


async def _output(command: List[str]) -> Optional[str]:
    """What the command printed; None when it failed, which the log tells."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    except OSError as error:
        _log.warning("%s cannot be run: %s", command[0], error)
        return None
    try:
        out, errors = await asyncio.wait_for(process.communicate(), TOOL_SECONDS)
    except asyncio.TimeoutError:
        _log.warning("%s did not answer within %s s", command[0], TOOL_SECONDS)
        process.kill()
        await process.wait()
        return None
    if process.returncode:
        _log.warning("%s failed (%s): %s", command[0], process.returncode, errors.decode(errors="replace").strip())
        return None
    return out.decode(errors="replace")

"""Which task has which accelerators. An accelerator belongs to one living task at a time."""

from __future__ import annotations

from typing import Dict, List, Optional

from dstack.agent.gpu.meter import GpuMeter
from dstack.agent.gpu.parse import Gpu
from dstack.agent.protocol import GpuMetrics, TaskSpec
from dstack.agent.tasks import Task, Tasks

VARIABLES = {
    "nvidia": ["CUDA_VISIBLE_DEVICES"],
    "amd": ["ROCR_VISIBLE_DEVICES"],
    "intel": ["HABANA_VISIBLE_DEVICES"],
    "tenstorrent": ["TT_VISIBLE_DEVICES"],
}
"""What limits a process to some of a vendor's accelerators."""


class GpusTaken(Exception):
    """There are not as many free accelerators as asked for; the message is for the user."""


class GpuPool:
    """The host's accelerators. What is taken is read from the states of the tasks, so it survives restarts."""

    def __init__(self, tasks: Tasks, gpus: List[Gpu]) -> None:
        self._tasks = tasks
        self.gpus = gpus
        self._meter: Optional[GpuMeter] = None

    def choose(self, task: Task, spec: TaskSpec) -> List[str]:
        """Ids for the task, to be written into its state. Raises GpusTaken."""
        if task.state.gpu_ids or not spec.gpu:
            return task.state.gpu_ids
        taken = {gpu for other in self._tasks.live() if other is not task for gpu in other.state.gpu_ids}
        free = [gpu.id for gpu in self.gpus if gpu.id not in taken]
        wanted = len(self.gpus) if spec.gpu < 0 else spec.gpu
        if len(free) < wanted:
            message = "the task needs {} GPUs, but {} of the host's {} are free"
            raise GpusTaken(message.format(wanted, len(free), len(self.gpus)))
        return free[:wanted]

    def of(self, gpu_ids: List[str]) -> List[Gpu]:
        """The accelerators of these ids."""
        return [gpu for gpu in self.gpus if gpu.id in gpu_ids]

    async def measure(self, gpu_ids: List[str]) -> List[GpuMetrics]:
        """What these accelerators are doing; fewer when the vendor's tool does not tell of all."""
        if not self.gpus or not gpu_ids:
            return []
        if self._meter is None:
            self._meter = GpuMeter(self.gpus[0].vendor)  # a host has those of one vendor
        return await self._meter.measure(gpu_ids)

    def environment(self, gpu_ids: List[str]) -> Dict[str, str]:
        """Limits a process to these accelerators; to none of them when there are others on the host."""
        vendors = {gpu.vendor for gpu in self.gpus}
        return {name: ",".join(gpu_ids) for vendor in vendors for name in VARIABLES[vendor]}

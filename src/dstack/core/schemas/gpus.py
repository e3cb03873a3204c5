"""`/api/project/{project_name}/gpus`."""

from __future__ import annotations

from typing import Literal

from dstack.core.backends import BackendType
from dstack.core.instances import InstanceAvailability
from dstack.core.models import CoreModel
from dstack.core.resources import AcceleratorVendor, CPUArchitecture, Range
from dstack.core.runs import RunSpec


class ListGpusRequest(CoreModel):
    """Which GPUs could the run have?"""

    run_spec: RunSpec
    group_by: list[Literal["backend", "region", "count"]] | None = None
    reverse: bool = False
    full_offers: bool = False
    unallocated_resources: bool = False


class GpuGroup(CoreModel):
    """Offers of one GPU, summed up."""

    name: str
    memory_mib: int
    vendor: AcceleratorVendor
    availability: list[InstanceAvailability]
    spot: list[Literal["spot", "on-demand"]]
    count: Range[int]
    price: Range[float]
    offer_price: Range[float] | None = None
    backends: list[BackendType] | None = None
    backend: BackendType | None = None
    regions: list[str] | None = None
    region: str | None = None


class CpuGroup(CoreModel):
    """Offers without a GPU, summed up."""

    cpu_arch: list[CPUArchitecture]
    count: Range[int]
    memory_mib: Range[int]
    price: Range[float]
    availability: list[InstanceAvailability]
    spot: list[Literal["spot", "on-demand"]]
    backends: list[BackendType] | None = None
    backend: BackendType | None = None
    regions: list[str] | None = None
    region: str | None = None


class ListGpusResponse(CoreModel):
    """All groups, cheapest first."""

    gpus: list[GpuGroup]
    cpus: list[CpuGroup] | None = None

"""What a run needs and what an instance has: ranges, memory, CPU, GPU and disk, with their short forms."""

from __future__ import annotations

import enum
import re
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from dstack.core.models import CoreModel

GIGABYTES_PER_UNIT = {"mb": 1 / 1024, "gb": 1.0, "tb": 1024.0, "mib": 1 / 1024, "gib": 1.0, "tib": 1024.0}

_MEMORY = re.compile(r"(-?\d+(?:\.\d+)?)([mgt]i?b)?")
_COUNT = re.compile(r"\d+|\d+\s*\.\.\s*\d*|\.\.\s*\d+")
_SIZE = re.compile(r"(?:\d+(?:\.\d+)?\s*[mgt]i?b)?\s*(?:\.\.)?\s*(?:\d+(?:\.\d+)?\s*[mgt]i?b)?", re.IGNORECASE)


def parse_memory(value: Any) -> float:
    """Gigabytes (1024³ bytes) of a number or a text such as `512MB` or `16GB`; without a unit it is GB."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, str):
        raise ValueError(f"a size such as 16, '512MB', '16GB' or '1TB' is expected, not {value!r}")
    match = _MEMORY.fullmatch(value.replace(" ", "").lower())
    if match is None:
        raise ValueError(f"{value!r} is not a size: write a number with MB, GB or TB, such as '512MB' or '16GB'")
    return float(match.group(1)) * GIGABYTES_PER_UNIT[match.group(2) or "gb"]


def format_memory(gigabytes: float) -> str:
    """`0.5` is `512MB`, `16.0` is `16GB`, `2048.0` is `2TB`."""
    if gigabytes >= 1024 and gigabytes % 1024 == 0:
        return f"{gigabytes / 1024:g}TB"
    if 0 < gigabytes < 1:
        return f"{gigabytes * 1024:g}MB"
    return f"{gigabytes:g}GB"


Memory = Annotated[float, BeforeValidator(parse_memory)]
"""Gigabytes."""

T = TypeVar("T", int, float, Memory)


class Range(CoreModel, Generic[T]):
    """Between `min` and `max`, both included; one of them may be open. Short forms: `4`, `2..8`, `2..`, `..8`."""

    min: T | None = None
    max: T | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, (int, float)):
            return {"min": value, "max": value}
        if isinstance(value, str):
            return split_range(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a range needs a lower or an upper end, such as '2..' or '..8'")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"the range {self} is empty: its lower end is above its upper one")
        return self

    def __str__(self) -> str:
        if self.min == self.max:
            return _number(self.min)
        return f"{_number(self.min)}..{_number(self.max)}"

    def contains(self, value: float) -> bool:
        """Whether the value lies within the range."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def intersection(self, other: Range[T]) -> Range[T] | None:
        """What both ranges allow; None when that is nothing."""
        lows = [end for end in (self.min, other.min) if end is not None]
        highs = [end for end in (self.max, other.max) if end is not None]
        low, high = max(lows, default=None), min(highs, default=None)
        if low is not None and high is not None and low > high:
            return None
        return type(self)(min=low, max=high)


def split_range(text: str) -> dict[str, str | None]:
    """The two ends of `2..8`; of a single value, twice the same."""
    ends: list[str | None] = [end.strip() or None for end in text.split("..")]
    if len(ends) == 1:
        ends *= 2
    if len(ends) != 2 or ends == [None, None]:
        raise ValueError(f"{text!r} is not a range: write '4', '2..8', '2..' or '..8'")
    return {"min": ends[0], "max": ends[1]}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


class CPUArchitecture(str, enum.Enum):
    """Instruction sets."""

    X86 = "x86"
    ARM = "arm"


class AcceleratorVendor(str, enum.Enum):
    """Who makes the accelerator."""

    NVIDIA = "nvidia"
    AMD = "amd"
    GOOGLE = "google"
    INTEL = "intel"
    TENSTORRENT = "tenstorrent"


VENDOR_ALIASES = {"tpu": AcceleratorVendor.GOOGLE, "tt": AcceleratorVendor.TENSTORRENT}


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class CPUSpec(CoreModel):
    """CPUs that are needed. Short forms: `4`, `2..8`, `arm:4..`, `x86`."""

    arch: Annotated[CPUArchitecture | None, BeforeValidator(_lower)] = None
    """x86 by default, unless there is an image."""
    count: Range[int] = Field(default_factory=lambda: Range[int](min=2))
    """How many."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, int):
            return {"count": value}
        if isinstance(value, str):
            return _parse_cpu(value)
        if isinstance(value, dict) and value and value.keys() <= {"min", "max"}:
            return {"count": value}
        return value

    def __str__(self) -> str:
        return f"{self.arch.value}:{self.count}" if self.arch else str(self.count)


def _parse_cpu(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in (part.strip() for part in text.split(":")):
        if part.lower() in set(CPUArchitecture):
            key, value = "arch", part.lower()
        elif _COUNT.fullmatch(part):
            key, value = "count", part
        else:
            raise ValueError(f"{text!r} is not a CPU spec: {part!r} is neither a count nor one of x86, arm")
        if key in found:
            raise ValueError(f"{text!r} gives the {key} of the CPU twice")
        found[key] = value
    return found


def _parse_vendor(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    vendor = _find_vendor(value)
    if vendor is None:
        names = ", ".join(v.value for v in AcceleratorVendor)
        raise ValueError(f"{value!r} is not a GPU vendor: choose one of {names}")
    return vendor


def _find_vendor(text: str) -> AcceleratorVendor | None:
    name = text.lower()
    if name in set(AcceleratorVendor):
        return AcceleratorVendor(name)
    return VENDOR_ALIASES.get(name)


def _parse_names(value: Any) -> Any:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    if not isinstance(value, list):
        return value
    if not all(value):
        raise ValueError("a GPU name is empty")
    return [name[4:] if isinstance(name, str) and name.startswith("tpu-") else name for name in value]


def _parse_capability(value: Any) -> Any:
    if isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)\.(\d+)", value)
    if match is None:
        raise ValueError(f"{value!r} is not a compute capability: write it like '8.0'")
    return int(match.group(1)), int(match.group(2))


class GPUSpec(CoreModel):
    """GPUs that are needed; `memory` is of each. Short forms: `H100:8`, `24GB..`, `nvidia:A100,A10G:2..4`."""

    vendor: Annotated[AcceleratorVendor | None, BeforeValidator(_parse_vendor)] = None
    """Who makes them."""
    name: Annotated[list[str] | None, BeforeValidator(_parse_names)] = None
    """Any of these."""
    count: Range[int] = Field(default_factory=lambda: Range[int](min=1))
    """How many."""
    memory: Range[Memory] | None = None
    """Of each."""
    total_memory: Range[Memory] | None = None
    """Of all together."""
    compute_capability: Annotated[tuple[int, int] | None, BeforeValidator(_parse_capability)] = None
    """Of NVIDIA GPUs, at least; such as `8.0`."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, int):
            return {"count": value}
        if isinstance(value, str):
            return _parse_gpu(value)
        return value


def _parse_gpu(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in (part.strip() for part in text.split(":")):
        key = _gpu_part(part)
        if key is None:
            raise ValueError(
                f"{text!r} is not a GPU spec: write it like 'H100:8', 'A100:40GB..:2' or 'amd:MI300X'"
            )
        if key in found:
            raise ValueError(f"{text!r} gives the {key} of the GPU twice")
        found[key] = part
    return found


def _gpu_part(part: str) -> str | None:
    if not part:
        return None
    if _find_vendor(part) is not None:
        return "vendor"
    if _COUNT.fullmatch(part):
        return "count"
    if _SIZE.fullmatch(part):
        return "memory"
    return "name"


class DiskSpec(CoreModel):
    """Disk that is needed. Short forms: `100GB..`, `200`."""

    size: Range[Memory]
    """How much."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"size": value} if isinstance(value, (int, float, str)) else value


class ResourcesSpec(CoreModel):
    """The resources that a run or a fleet needs."""

    cpu: CPUSpec = Field(default_factory=CPUSpec)
    """Number and architecture. Jobs on the server's own machine may use no more than the upper end."""
    memory: Range[Memory] = Field(default_factory=lambda: Range[Memory](min=8.0))
    """Likewise."""
    shm_size: Memory | None = None
    """Size of `/dev/shm` in containers."""
    gpu: GPUSpec | None = Field(default_factory=lambda: GPUSpec(count=Range[int](min=0)))
    """Number and kind."""
    disk: DiskSpec | None = Field(default_factory=lambda: DiskSpec(size=Range[Memory](min=100.0)))
    """Size of the disk; all jobs of an instance share it."""

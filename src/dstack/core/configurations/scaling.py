"""How a service scales."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dstack.core.durations import Duration
from dstack.core.models import CoreModel
from dstack.core.resources import Range

WINDOWS = (30, 60, 300)
"""Seconds over which requests may be counted."""
DEFAULT_WINDOW = 60


def _check_window(seconds: int) -> int:
    if seconds not in WINDOWS:
        raise ValueError("'window' must be one of 30s, 1m, 5m")
    return seconds


Metric = Literal["rps", "in_flight", "queue_time"]


class ScalingSpec(CoreModel):
    """Keeps the metric per replica near the target."""

    metric: Metric
    """`rps`: requests per second and replica. `in_flight`: requests at work at a time, per replica. `queue_time`:
    seconds until an answer begins."""
    effective_metric: Metric | None = None
    """Not for configurations: the metric again, for those who know others than `rps` only by this name."""
    target: float = Field(gt=0)
    """Of the metric."""
    window: Annotated[Duration, AfterValidator(_check_window)] | None = None
    """Seconds; null for a minute."""
    scale_up_delay: Duration = 300
    """Between two steps up."""
    scale_down_delay: Duration = 600
    """Between two steps down."""

    @model_validator(mode="after")
    def _settle_metric(self) -> ScalingSpec:
        """What was written by `_dump` reads as it was before."""
        if self.effective_metric is not None:
            self.metric = self.effective_metric
        self.effective_metric = None if self.metric == "rps" else self.metric
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Published clients know no metric but `rps`, and servers of theirs no `effective_metric`."""
        dumped: dict[str, Any] = handler(self)
        if self.effective_metric is None:
            dumped.pop("effective_metric", None)
        else:
            dumped["metric"] = "rps"
        return dumped


def _open_from_zero(value: Any) -> Any:
    """`..4` starts at zero replicas."""
    return f"0{value.strip()}" if isinstance(value, str) and value.strip().startswith("..") else value


def _check_replicas(replicas: Range[int]) -> Range[int]:
    if replicas.max is None:
        raise ValueError("the highest number of replicas is missing: write '1..4'")
    if replicas.min is None:
        replicas.min = 0
    if replicas.min < 0:
        raise ValueError("the number of replicas cannot be negative")
    return replicas


ReplicaRange = Annotated[Range[int], BeforeValidator(_open_from_zero), AfterValidator(_check_replicas)]


def check_scaling(replicas: Range[int] | None, scaling: ScalingSpec | None) -> None:
    """Raises ValueError unless a range of replicas and a scaling rule come together."""
    is_range = replicas is not None and replicas.min != replicas.max
    if is_range and scaling is None:
        raise ValueError("a range of 'replicas' needs 'scaling'")
    if scaling is not None and not is_range:
        raise ValueError("'scaling' needs a range of 'replicas', such as '1..4'")

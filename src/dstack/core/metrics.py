"""Measurements of jobs."""

from typing import Any

from dstack.core.models import CoreModel, Timestamp


class Metric(CoreModel):
    """One series; values and timestamps go together by position."""

    name: str
    timestamps: list[Timestamp]
    values: list[Any]


class JobMetrics(CoreModel):
    """All series of a job."""

    metrics: list[Metric]

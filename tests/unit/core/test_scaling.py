"""The metrics of scaling, and how those are told that published clients do not know (better B10)."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dstack.core.configurations.scaling import ScalingSpec


@pytest.mark.parametrize("metric", ["in_flight", "queue_time"])
def test_b10_a_metric_of_ours_is_rps_to_those_who_know_no_other(metric: str) -> None:
    spec = ScalingSpec.model_validate({"metric": metric, "target": 2})
    dumped = spec.model_dump(mode="json")
    assert (dumped["metric"], dumped["effective_metric"]) == ("rps", metric)
    again = ScalingSpec.model_validate(dumped)
    assert (again.metric, again) == (metric, spec)


def test_b10_rps_is_told_as_ever() -> None:
    dumped = ScalingSpec.model_validate({"metric": "rps", "target": 2}).model_dump(mode="json")
    assert list(dumped) == ["metric", "target", "window", "scale_up_delay", "scale_down_delay"]


def test_b10_an_unknown_metric_is_told() -> None:
    with pytest.raises(ValidationError, match="'rps', 'in_flight' or 'queue_time'"):
        ScalingSpec.model_validate({"metric": "latency", "target": 2})

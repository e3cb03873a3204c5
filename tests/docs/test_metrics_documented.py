"""The reference of metrics names every one of them, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import REGISTRY

import dstack.server.app  # noqa: F401 - whatever the server counts is registered by then
from dstack.proxy.stats import ServiceStats
from dstack.server.operations.prometheus import FAMILIES
from dstack.server.proxy.metrics import ServiceMetrics

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    counted = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in REGISTRY.collect()
        if metric.name.startswith("dstack_")
    }
    described = ServiceMetrics(ServiceStats(), dict).describe()
    counted |= {metric.name + ("_total" if metric.type == "counter" else "") for metric in described}
    documented = set(re.findall(r"`(dstack_[a-z_]+)`", PAGE.read_text()))
    assert documented == counted | {family.name for family in FAMILIES}

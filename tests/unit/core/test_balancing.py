"""`balancing` of a service: an addition to the reference."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from dstack.core.canonical import dump_json
from dstack.core.configurations.service import ServiceConfiguration
from dstack.core.diff import blocking_run_fields, changed_run_fields
from dstack.core.runs import RunSpec

SERVICE = {"type": "service", "port": 80, "commands": ["a"]}


def parsed(balancing: Any) -> Any:
    """As it is sent."""
    configuration = ServiceConfiguration.model_validate({**SERVICE, "balancing": balancing})
    return json.loads(dump_json(configuration))["balancing"]


GOOD: list[tuple[Any, dict[str, Any]]] = [
    ("random", {"policy": "random"}),
    ("least_requests", {"policy": "least_requests"}),
    ("prefix", {"policy": "prefix", "prefix_length": 1024, "load_factor": 1.25}),
    ({"policy": "prefix", "load_factor": 2}, {"policy": "prefix", "prefix_length": 1024, "load_factor": 2.0}),
    ({"policy": "session", "cookie": "tied"}, {"policy": "session", "header": None, "cookie": "tied"}),
]


@pytest.mark.parametrize(("given", "sent"), GOOD)
def test_forms(given: Any, sent: dict[str, Any]) -> None:
    assert parsed(given) == sent
    assert parsed(sent) == sent


BAD: list[tuple[Any, str]] = [
    ("fastest", "'random', 'least_requests', 'prefix', 'session'"),
    ("session", "either a 'header' or a 'cookie'"),
    ({"policy": "session", "header": "a", "cookie": "b"}, "either a 'header' or a 'cookie'"),
    ({"policy": "session", "cookie": "a b"}, "pattern"),
    ({"policy": "prefix", "prefix_length": 0}, "greater than or equal to 1"),
    ({"policy": "prefix", "load_factor": 0.9}, "greater than or equal to 1"),
    ({"policy": "random", "header": "a"}, "Extra inputs"),
]


@pytest.mark.parametrize(("given", "text"), BAD)
def test_errors(given: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        parsed(given)


def test_it_is_sent_only_where_it_is_set() -> None:
    """So that servers that do not know it take the configuration."""
    assert "balancing" not in dump_json(ServiceConfiguration.model_validate(SERVICE))


def test_it_can_be_changed_in_place() -> None:
    before, after = (
        RunSpec.model_validate({"configuration": {**SERVICE, **more}}) for more in ({}, {"balancing": "prefix"})
    )
    assert blocking_run_fields(before, after) == blocking_run_fields(after, before) == []
    assert any("balancing" in field for field in changed_run_fields(before, after))

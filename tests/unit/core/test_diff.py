"""Which changes need a run or fleet to be made anew."""

from typing import Any

import pytest

from dstack.core.diff import blocking_run_fields, can_update_fleet, can_update_run, changed_run_fields
from dstack.core.fleets import FleetSpec
from dstack.core.runs import RunSpec

TASK = {"type": "task", "commands": ["a"]}
SERVICE = {"type": "service", "port": 80, "commands": ["a"]}
DEV = {"type": "dev-environment"}


def run(configuration: dict[str, Any], **fields: Any) -> RunSpec:
    return RunSpec.model_validate({"configuration": configuration, **fields})


@pytest.mark.parametrize(
    ("base", "change", "blocking"),
    [
        (TASK, {}, []),
        (TASK, {"priority": 5}, []),
        (TASK, {"commands": ["b"]}, ["configuration.commands"]),
        (DEV, {"inactivity_duration": "1h"}, []),
        (DEV, {"ide": "zed"}, ["configuration.ide"]),
        (SERVICE, {"commands": ["b"], "image": "i"}, []),
        (SERVICE, {"https": True}, []),
        (SERVICE, {"auth": False}, ["configuration.auth"]),
        (SERVICE, {"resources": {"cpu": "x86:2.."}}, []),
    ],
)
def test_blocking_fields_of_a_run(base: dict[str, Any], change: dict[str, Any], blocking: list[str]) -> None:
    assert blocking_run_fields(run(base), run(base | change)) == blocking


def test_another_type_is_another_run() -> None:
    assert blocking_run_fields(run(TASK), run(DEV)) == ["configuration.type"]


def test_files_count_only_with_their_archives() -> None:
    old, new = run(TASK | {"files": ["a"]}), run(TASK | {"files": ["b"]})
    assert changed_run_fields(old, new) == []


def test_spec_fields_of_a_service_may_change() -> None:
    assert can_update_run(run(SERVICE), run(SERVICE, working_dir="/x"))
    assert not can_update_run(run(TASK), run(TASK, working_dir="/x"))


def fleet(**configuration: Any) -> FleetSpec:
    return FleetSpec.model_validate({"configuration": {"type": "fleet", **configuration}, "profile": {}})


@pytest.mark.parametrize(
    ("old", "new", "possible"),
    [
        ({"nodes": 1}, {"nodes": 2}, True),
        ({"nodes": 1}, {"nodes": 1, "placement": "cluster"}, False),
        ({"ssh_config": {"hosts": ["a"]}}, {"ssh_config": {"hosts": ["a", "b"]}}, True),
        ({"ssh_config": {"hosts": ["a"]}}, {"ssh_config": {"hosts": [{"hostname": "a", "port": 23}]}}, False),
        ({"ssh_config": {"hosts": ["a"]}}, {"ssh_config": {"hosts": ["a"], "user": "u"}}, False),
        ({"nodes": 1}, {"ssh_config": {"hosts": ["a"]}}, False),
    ],
)
def test_update_of_a_fleet(old: dict[str, Any], new: dict[str, Any], possible: bool) -> None:
    assert can_update_fleet(fleet(**old), fleet(**new)) is possible

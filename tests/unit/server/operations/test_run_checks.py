"""What is told to be wrong about a run before it is submitted."""

from __future__ import annotations

from typing import Any

import pytest

from dstack.core.errors import InvalidRequest
from dstack.core.runs import RunSpec
from dstack.server import settings
from dstack.server.operations.run_checks import check_run

SETTINGS = settings.load({})
GROUP = {"nodes": 1, "commands": ["x ${{ groups[0].nodes[0].IP_ADDRESS }}"]}


def check(**configuration: Any) -> None:
    data = {"type": "task", "commands": [] if "groups" in configuration else ["true"], **configuration}
    check_run(RunSpec.model_validate({"configuration": data}), SETTINGS)


@pytest.mark.parametrize(
    "configuration",
    [
        {},
        {"env": {"A": "${{ secrets.a }}", "B": "$${{ env.b }} costs $5"}},
        {"commands": ["echo $${{ secrets.a }} '${{ matrix.os }}' ${HOME} $$"]},
        {"groups": [GROUP]},
        {"schedule": {"cron": "0 8 * * mon-fri"}},
        {"utilization_policy": {"min_gpu_utilization": 10, "time_window": "1h"}},
    ],
)
def test_good(configuration: dict[str, Any]) -> None:
    check(**configuration)


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ({"dstack": True}, "gives jobs no access to itself"),
        ({"schedule": {"cron": "0 0 30 2 *"}}, "never comes"),
        ({"schedule": {"cron": ["0 0 30 feb *", "0 0 31 apr *"]}}, "never comes"),
        ({"utilization_policy": {"min_gpu_utilization": 10, "time_window": "2h"}}, "keeps metrics for 1h"),
        ({"commands": ["curl -H ${{ secrets.key }}"]}, "`env: [KEY=${{ secrets.key }}]`"),
        ({"commands": ["python a.py ${{ run.args }}"]}, "after `--` of `dstack apply`"),
        ({"setup": ["echo ${{ dstack.node_rank }}"]}, "is not known there"),
        ({"groups": [{"commands": ["echo ${{ env.A }}"]}]}, "which was not asked to"),
        ({"env": {"A": "${{ env.B }}"}}, "in 'env' or 'registry_auth'"),
        ({"env": {"A": "${{ secrets }}"}}, "write it like ${{ secrets.name }}"),
        ({"env": {"A": "${{ secrets.a"}}, "not closed"),
        ({"image": "i", "registry_auth": {"username": "u", "password": "${{ run.x }}"}}, "registry_auth"),
    ],
)
def test_bad(configuration: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(**configuration)
    assert says in str(caught.value)


def test_a_profile_is_looked_at_too() -> None:
    profile = {"name": "p", "schedule": {"cron": "0 0 30 2 *"}}
    spec = {"configuration": {"type": "task", "commands": ["true"]}, "profile": profile}
    with pytest.raises(InvalidRequest, match="never comes"):
        check_run(RunSpec.model_validate(spec), SETTINGS)

"""`dstack offer` against recorded answers."""

from __future__ import annotations

import pytest
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import ReplayServer, load_capture


@pytest.mark.parametrize(("fields", "sent"), [("gpu,backend", ["backend"]), ("gpu", [])])
def test_groups_are_asked_for_as_recorded(cli: Cli, server: ReplayServer, fields: str, sent: list[str]) -> None:
    server.replay("36", "37")
    status, out = cli("offer", "--group-by", fields)
    assert status == 0, out
    (asked,) = server.bodies("/api/project/main/gpus/list")
    recorded = load_capture("37")["request"]["body"]
    assert asked.keys() == recorded.keys()
    assert asked["group_by"] == sent
    assert recorded["group_by"] == ["backend"]

"""The Python API against recorded answers."""

from __future__ import annotations

import base64

import pytest
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import ReplayServer, load_capture, recorded

from dstack.api.client import Client
from dstack.api.errors import ConfigError
from dstack.core.configurations import TaskConfiguration
from dstack.core.errors import InvalidRequest
from dstack.core.runs import RunStatus


def test_a_run_from_plan_to_stop(cli: Cli, server: ReplayServer) -> None:
    server.replay("11", "13", "14", "30")
    status, document = recorded("31")
    server.on("/api/project/main/runs/get", (status, document))
    server.replay("34")
    with Client.from_config() as client:
        plan = client.runs.get_run_plan(TaskConfiguration(commands=["echo hello"]))
        assert plan.run_spec.run_name == "t1"
        run = client.runs.apply_plan(plan)
        assert (run.name, run.status) == ("t1", RunStatus.SUBMITTED)
        run.refresh()
        assert run.status is RunStatus(document["status"])
        entries = load_capture("34")["response"]["body"]["logs"]
        assert b"".join(run.logs()) == b"".join(base64.b64decode(entry["message"]) for entry in entries)
        run.stop()
    assert server.bodies("/api/project/main/runs/stop") == [{"runs_names": [run.name], "abort": False}]


def test_a_run_that_is_not_there(cli: Cli, server: ReplayServer) -> None:
    server.replay("33")
    with Client.from_config() as client:
        assert client.runs.get("nope") is None


def test_errors_have_their_kind(cli: Cli, server: ReplayServer) -> None:
    server.replay("11", "15")
    with Client.from_config() as client, pytest.raises(InvalidRequest, match="<text>"):
        client.runs.get_run_plan(TaskConfiguration(commands=["x"]))


def test_no_project(bare_cli: Cli) -> None:
    with pytest.raises(ConfigError, match="There is no default project"):
        Client.from_config()

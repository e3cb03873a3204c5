"""Presets: a real process in the coding agent's place works with the real command line against a real server."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.harness import Cli, ServerProcess, end_processes_of, wait_for
from tests.fixtures.ports import take_free_port

PRESET = """\
type: preset
name: tiny
model: org/tiny
min_context_length: 4096
max_ttft: 100
concurrency: 4
trials: 1
env: {GREETING: hello}
agent: {provider: claude, model: opus}
fleets: [local]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("server"))
    try:
        yield made.start()
    finally:
        made.end()
        end_processes_of(made.home)


@pytest.fixture
def dstack(server: ServerProcess, tmp_path: Path) -> Iterator[Callable[[str], Cli]]:
    """The command line of somebody whose coding agent does what is said."""
    script = Path(__file__).with_name("coding_agent.py")
    (tmp_path / "claude").write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    (tmp_path / "claude").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"

    def with_agent(how: str) -> Cli:
        cli = Cli(server, {"PATH": path, "HOW": how, "PORT": str(take_free_port())})
        cli.write(PRESET)
        return cli

    yield with_agent
    end_processes_of(tmp_path)
    shutil.rmtree(server.home / ".dstack/presets", ignore_errors=True)


def the_preset(cli: Cli) -> dict[str, Any]:
    status, out = cli("preset", "get", "tiny", "--json")
    assert status == 0, out
    preset: dict[str, Any] = json.loads(out)
    return preset


def workspace(cli: Cli) -> Path:
    return cli.server.home / ".dstack/presets" / str(the_preset(cli)["id"]) / "workspace"


def active_runs(server: ServerProcess) -> list[str]:
    runs = server.post("/api/runs/list", {"project_name": "main", "only_active": True, "limit": 100})
    return [run["run_spec"]["run_name"] for run in runs]


def test_a_preset_is_made_kept_and_exported(server: ServerProcess, dstack: Callable[[str], Cli]) -> None:
    cli = dstack("finds")
    cli.env["DSTACK_AGENT_ANTHROPIC_API_KEY"] = "sk-test"
    status, out = cli("apply", "-y")
    assert status == 0, out
    assert "Model    org/tiny" in out
    assert "trial 1: measured" in out
    preset = the_preset(cli)
    assert (preset["status"], preset["report"]["benchmark"]["output_tok_per_s"]) == ("done", 1234.5)
    started = json.loads((workspace(cli) / "started.json").read_text())
    assert started["key"] == "sk-test"
    assert started["argv"][0] == "-p"
    assert started["argv"][-2:] == ["--model", "opus"]
    wait_for("the service to be stopped", lambda: not active_runs(server))
    header, row = cli("preset")[1].splitlines()[:2]
    assert header.split() == ["NAME", "ID", "BASE", "CONSTRAINTS", "BENCHMARK", "STATUS", "SUBMITTED"]
    assert row.split()[:3] == ["tiny", preset["id"], "org/tiny"]
    assert "done" in row
    assert cli("preset", "logs", preset["id"])[1].count("\n") == 2
    assert cli("preset", "export", "tiny", "-f", "service.yml", "-n", "mine")[0] == 0
    exported = yaml.safe_load((cli.folder / "service.yml").read_text())
    assert (exported["type"], exported["name"], exported["model"]) == ("service", "mine", "tiny")
    refused = cli("preset", "export", "tiny", "-f", "service.yml")
    assert refused == (1, "service.yml is there: pass --force to overwrite it\n")
    listed = json.loads(cli("preset", "list", "--json", "--repo", "org/tiny")[1])["presets"]
    assert [each["id"] for each in listed] == [preset["id"]]
    assert json.loads(cli("preset", "--json", "--base", "org/tiny")[1]) == {"presets": []}
    assert cli("preset", "delete", "--repo", "org/tiny", "-y")[0] == 0
    assert cli("preset", "get", "tiny", "--json")[0] == 1


def test_another_starts_from_its_results_and_keeps_its_service(
    server: ServerProcess, dstack: Callable[[str], Cli]
) -> None:
    cli = dstack("finds")
    assert cli("preset", "create", "-f", ".dstack.yml", "-y")[0] == 0
    first = the_preset(cli)["id"]
    status, out = cli("apply", "-y", "--previous", "tiny", "--keep-service", "-n", "better")
    assert status == 0, out
    session = json.loads(cli("preset", "get", "better", "--json")[1])
    folder = server.home / ".dstack/presets" / session["id"]
    assert (folder / "workspace/previous" / first / "report.json").exists()
    assert "previous/" in (folder / "prompt.md").read_text()
    run = session["report"]["run_name"]
    wait_for("the first to be stopped", lambda: active_runs(server) == [run])
    assert cli("stop", run, "-y")[0] == 0


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("gives-up", "it does not fit; its last words: there is no GPU"),
        ("boasts", "which the agent reports, is no running service"),
    ],
)
def test_what_does_not_hold_has_failed(dstack: Callable[[str], Cli], how: str, says: str) -> None:
    cli = dstack(how)
    status, out = cli("apply", "-y")
    assert (status, says in out) == (1, True), out
    preset = the_preset(cli)
    assert preset["status"] == "failed"
    assert says in preset["error"]
    assert cli("preset", "resume", "tiny")[0] == 1
    assert cli("preset", "export", "tiny", "-f", "x.yml")[0] == 1


def test_the_agent_is_stopped_and_goes_on(server: ServerProcess, dstack: Callable[[str], Cli]) -> None:
    cli = dstack("waits")
    status, out = cli("apply", "-y", "-d")
    assert (status, "preset logs -f" in out) == (0, True), out
    wait_for("the first trial", lambda: "running (1/1)" in cli("preset")[1])
    refused = cli("preset", "delete", "tiny", "-y")
    assert (refused[0], "is being made" in refused[1]) == (1, True)
    status, out = cli("preset", "stop", "tiny", "-y")
    assert status == 0, out
    assert the_preset(cli)["status"] == "stopped"
    wait_for("its run to be stopped", lambda: not active_runs(server))
    status, out = cli("preset", "resume", "tiny")
    assert (status, "is done" in out) == (0, True), out
    wait_for("its run to be stopped", lambda: not active_runs(server))


def test_an_agent_that_vanishes_is_interrupted(server: ServerProcess, dstack: Callable[[str], Cli]) -> None:
    cli = dstack("waits")
    assert cli("apply", "-y", "-d")[0] == 0
    wait_for("the agent at work", lambda: (workspace(cli) / "started.json").exists())
    end_processes_of(workspace(cli))
    assert the_preset(cli)["status"] == "interrupted"
    status, out = cli("preset", "logs", "-f", "tiny")
    assert (status, "ended without a report" in out) == (1, True), out
    wait_for("its run to be stopped", lambda: not active_runs(server))


def test_what_is_refused_says_what_would_be_right(server: ServerProcess, dstack: Callable[[str], Cli]) -> None:
    cli = dstack("finds")
    cli.write(PRESET.replace("trials: 1\n", ""))
    expected = "Making a preset needs 'trials' in the configuration; set it there or give --trials\n"
    assert cli("apply", "-y") == (1, expected)
    cli.write(PRESET)
    assert cli("apply", "-y", "--previous", "nope") == (
        1,
        "There is no preset 'nope'; `dstack preset -a` shows all of them\n",
    )
    cli.env["DSTACK_AGENT_CLAUDE_PATH"] = "/no/claude"
    status, out = cli("apply", "-y")
    assert (status, "npm install -g @anthropic-ai/claude-code" in out) == (1, True), out
    for argv in (("push", "tiny", "main/tiny"), ("pull", "main/tiny")):
        status, out = cli("preset", *argv)
        assert (status, "There is no registry of presets" in out) == (1, True), out
    assert cli("preset", "pull", "tiny") == (1, "'tiny' is no place in a registry: write PROJECT/NAME\n")
    assert cli("preset", "delete")[0] == 2
    assert json.loads(cli("preset", "-a", "--json")[1]) == {"presets": []}

"""Which coding agent is run and how, what it is told, and when its report is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dstack.cli.errors import CliError
from dstack.cli.presets.agents import find_agent
from dstack.cli.presets.prompt import make_prompt
from dstack.cli.presets.report import BadReport, PresetReport, check_report, read_report
from dstack.cli.presets.sessions import new_session
from dstack.core.configurations import PresetConfiguration
from dstack.core.configurations.preset import PresetAgentConfig

WANTED: dict[str, Any] = {
    "name": "tiny",
    "model": {"base": "org/tiny"},
    "min_context_length": 4096,
    "max_ttft": 100,
    "concurrency": 4,
    "trials": 3,
}
SUCCESS: dict[str, Any] = {
    "success": True,
    "trials": 3,
    "run_name": "tiny-1",
    "service": "type: service\nport: 80\nimage: i\ncommands: [serve]\n",
    "model": "org/tiny",
    "context_length": 4096,
    "benchmark": {
        "tool": "t",
        "command": "c",
        "requests": 8,
        "failed_requests": 0,
        "output_tok_per_s": 10,
        "ttft_ms_p50": 20,
        "ttft_ms_p99": 100,
    },
}


@pytest.fixture
def executables(tmp_path: Path) -> Path:
    for name in ("claude", "codex", "other"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "wanted", "command"),
    [
        ({}, None, ["claude", "--permission-mode bypassPermissions"]),
        ({"DSTACK_AGENT_PROVIDER": "codex"}, None, ["codex", "exec", "-C /w", "-"]),
        ({"DSTACK_AGENT_PROVIDER": "codex"}, PresetAgentConfig(provider="claude"), ["claude"]),
        ({"DSTACK_AGENT_ANTHROPIC_MODEL": "a"}, None, ["--model a"]),
        ({"DSTACK_AGENT_ANTHROPIC_MODEL": "a"}, PresetAgentConfig(provider="claude", model="b"), ["--model b"]),
        ({"DSTACK_AGENT_OPENAI_MODEL": "a"}, PresetAgentConfig(provider="codex"), ["-m a"]),
        ({"DSTACK_AGENT_CLAUDE_EFFORT": "max"}, None, ["--effort max"]),
        ({"DSTACK_AGENT_CODEX_EFFORT": "low"}, PresetAgentConfig(provider="codex"), ['effort="low"']),
        ({"DSTACK_AGENT_CLAUDE_PATH": "other"}, None, ["other"]),
    ],
)
def test_the_command_of_the_agent(
    executables: Path, environ: dict[str, str], wanted: PresetAgentConfig | None, command: list[str]
) -> None:
    agent = find_agent(wanted, environ | {"PATH": str(executables)})
    shown = " ".join(agent.command(Path("/w")))
    for part in command:
        assert part in shown


def test_the_agents_credentials(executables: Path) -> None:
    keys = {"DSTACK_AGENT_ANTHROPIC_API_KEY": "a", "DSTACK_AGENT_OPENAI_API_KEY": "o", "PATH": str(executables)}
    assert find_agent(None, keys).credentials() == {"ANTHROPIC_API_KEY": "a"}
    codex = find_agent(PresetAgentConfig(provider="codex"), keys)
    assert codex.credentials() == {"OPENAI_API_KEY": "o", "CODEX_API_KEY": "o"}
    assert find_agent(None, {"PATH": str(executables)}).credentials() == {}


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"PATH": "/nowhere"}, "npm install -g @anthropic-ai/claude-code"),
        ({"PATH": "/nowhere", "DSTACK_AGENT_PROVIDER": "codex"}, "npm install -g @openai/codex"),
        ({"DSTACK_AGENT_PROVIDER": "other"}, "it must be claude or codex"),
        ({"DSTACK_AGENT_CLAUDE_EFFORT": "none"}, "it must be one of low, medium, high, xhigh, max"),
    ],
)
def test_an_agent_that_there_is_not(executables: Path, environ: dict[str, str], says: str) -> None:
    with pytest.raises(CliError, match=says):
        find_agent(None, {"PATH": str(executables)} | environ)


def test_what_the_agent_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = PresetConfiguration.model_validate(
        WANTED | {"fleets": ["local"], "env": {"TOKEN": "hidden"}, "shared_prefix_tokens": 100, "previous": ["x"]}
    )
    session = new_session(wanted, project="main", provider="claude", keep_service=False)
    told = make_prompt(session, "Be quick")
    for part in ("org/tiny, or any variant", "measure exactly 3 ways", "name: local", "- TOKEN", "Be quick"):
        assert part in told
    for part in (f"begin with `{session.run_prefix}`", "100 of them the same", "previous/", '"output_tok_per_s"'):
        assert part in told
    assert "hidden" not in told
    assert "interrupted" not in told
    assert "interrupted" in make_prompt(session, None, again=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"success": False, "failure": "too big"}, "too big"),
        ({"benchmark": None}, "lacks benchmark"),
        ({"service": "type: task\ncommands: [a]\n"}, "no configuration of a service"),
        ({"service": "type: service\ncommands: [a]\n"}, "'port' is missing"),
        ({"service": "a: b: c"}, "not valid YAML"),
        ({"run_name": "other"}, "no run of this preset"),
        ({"context_length": 2048}, "4096 are asked for"),
        ({"benchmark": SUCCESS["benchmark"] | {"ttft_ms_p99": 100.5}}, "at most 100 may be"),
        ({"benchmark": SUCCESS["benchmark"] | {"failed_requests": 1}}, "1 requests of the measurement failed"),
    ],
)
def test_when_a_report_is_believed(change: dict[str, Any], says: str | None) -> None:
    report = PresetReport.model_validate(SUCCESS | change)
    wanted = PresetConfiguration.model_validate(WANTED)
    if says is None:
        check_report(report, wanted, "tiny")
        return
    with pytest.raises(BadReport, match=says):
        check_report(report, wanted, "tiny")


def test_reading_a_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(BadReport, match="without a report"):
        read_report(path)
    path.write_text(json.dumps(SUCCESS | {"trials": "many"}))
    with pytest.raises(BadReport, match="trials: "):
        read_report(path)
    path.write_text(json.dumps(SUCCESS))
    assert read_report(path).trials == 3

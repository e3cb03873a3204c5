"""The command lines of coding agents: found, and started with a task."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dstack.cli.applying.configure import resolve_env
from dstack.cli.context import Context
from dstack.cli.errors import CliError
from dstack.cli.presets.sessions import Session, process_start
from dstack.core.configurations.preset import PresetAgentConfig

INSTALL = {
    "claude": "npm install -g @anthropic-ai/claude-code",
    "codex": "npm install -g @openai/codex",
}
EFFORTS = {"claude": ("low", "medium", "high", "xhigh", "max"), "codex": ("low", "medium", "high", "xhigh")}
MAKERS = {"claude": "ANTHROPIC", "codex": "OPENAI"}
PROGRESS = """\
#!{python}
import argparse, json, os, time
parser = argparse.ArgumentParser(description="Tells the user how the work goes")
parser.add_argument("message")
parser.add_argument("--trial", type=int, help="the number of the trial that was measured")
args = parser.parse_args()
entry = {{"time": time.time(), "message": args.message}} | ({{"trial": args.trial}} if args.trial else {{}})
with open(os.environ["DSTACK_PRESET_PROGRESS_LOG"], "a") as log:
    log.write(json.dumps(entry) + "\\n")
"""
DSTACK = '#!/bin/sh\nexec "{python}" -m dstack "$@"\n'


@dataclass(frozen=True)
class CodingAgent:
    """Whose command line is run, and how."""

    provider: str
    executable: str
    model: str | None
    effort: str | None
    api_key: str | None

    def command(self, folder: Path) -> list[str]:
        """It reads the task from its standard input and works in the folder without asking."""
        if self.provider == "claude":
            command = [self.executable, "-p", "--output-format", "stream-json", "--verbose"]
            command += ["--permission-mode", "bypassPermissions"]
            command += ["--model", self.model] if self.model else []
            return command + (["--effort", self.effort] if self.effort else [])
        command = [self.executable, "exec", "--json", "--skip-git-repo-check", "-C", str(folder)]
        command += ["--dangerously-bypass-approvals-and-sandbox"]
        command += ["-m", self.model] if self.model else []
        command += ["-c", f'model_reasoning_effort="{self.effort}"'] if self.effort else []
        return [*command, "-"]

    def credentials(self) -> dict[str, str]:
        """Variables of its process."""
        if self.api_key is None:
            return {}
        names = ("ANTHROPIC_API_KEY",) if self.provider == "claude" else ("OPENAI_API_KEY", "CODEX_API_KEY")
        return dict.fromkeys(names, self.api_key)


def find_agent(wanted: PresetAgentConfig | None, environ: Mapping[str, str]) -> CodingAgent:
    """The one that the configuration or the environment names. Raises CliError when it is not installed."""
    provider = wanted.provider if wanted else environ.get("DSTACK_AGENT_PROVIDER") or "claude"
    if provider not in INSTALL:
        raise CliError(f"DSTACK_AGENT_PROVIDER is {provider!r}; it must be claude or codex")
    name = environ.get(f"DSTACK_AGENT_{provider.upper()}_PATH") or provider
    executable = shutil.which(name, path=environ.get("PATH"))
    if executable is None:
        raise CliError(
            f"Presets are made by the coding agent {provider!r}, and there is no executable {name!r}: install it "
            f"(`{INSTALL[provider]}`), or say where it is with DSTACK_AGENT_{provider.upper()}_PATH"
        )
    maker = MAKERS[provider]
    return CodingAgent(
        provider,
        executable,
        model=(wanted and wanted.model) or environ.get(f"DSTACK_AGENT_{maker}_MODEL") or None,
        effort=(wanted and wanted.effort) or _effort(provider, environ),
        api_key=environ.get(f"DSTACK_AGENT_{maker}_API_KEY") or None,
    )


def _effort(provider: str, environ: Mapping[str, str]) -> str | None:
    name = f"DSTACK_AGENT_{provider.upper()}_EFFORT"
    effort = environ.get(name) or None
    if effort is not None and effort not in EFFORTS[provider]:
        raise CliError(f"{name} is {effort!r}; it must be one of {', '.join(EFFORTS[provider])}")
    return effort


def start_agent(agent: CodingAgent, session: Session, prompt: str, context: Context) -> subprocess.Popen[bytes]:
    """In a process group of its own: it goes on when this command ends. The session has it on record."""
    environment = _environment(agent, session, context)
    (session.folder / "prompt.md").write_text(prompt)
    _make_tools(session.workspace / "bin")
    with (
        (session.folder / "prompt.md").open("rb") as task,
        (session.folder / "trace.jsonl").open("ab") as out,
        (session.folder / "agent.log").open("ab") as errors,
    ):
        process = subprocess.Popen(
            agent.command(session.workspace),
            stdin=task,
            stdout=out,
            stderr=errors,
            cwd=session.workspace,
            env=environment,
            start_new_session=True,
        )
    session.process, session.process_started = process.pid, process_start(process.pid)
    session.save()
    return process


def _make_tools(folder: Path) -> None:
    """`dstack` is this program, `progress` tells how it goes."""
    folder.mkdir(exist_ok=True)
    for name, text in (("progress", PROGRESS), ("dstack", DSTACK)):
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755)


def _environment(agent: CodingAgent, session: Session, context: Context) -> dict[str, str]:
    variables = resolve_env(session.wanted.env, [], os.environ)
    return {
        **os.environ,
        **{name: str(value) for name, value in variables.items()},
        **agent.credentials(),
        "PATH": os.pathsep.join((str(session.workspace / "bin"), os.environ.get("PATH", os.defpath))),
        "DSTACK_SERVER_URL": context.rest.base_url,
        "DSTACK_TOKEN": context.rest.token or "",
        "DSTACK_PROJECT": context.project,
        "DSTACK_PRESET_PROGRESS_LOG": str(session.workspace / "progress.jsonl"),
    }

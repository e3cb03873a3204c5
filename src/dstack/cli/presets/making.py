"""The making of a preset: the agent is started, followed, stopped, and what it reports is checked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import yaml

from dstack.cli.context import Context
from dstack.cli.errors import CliError
from dstack.cli.presets.agents import CodingAgent, find_agent, start_agent
from dstack.cli.presets.prompt import make_prompt
from dstack.cli.presets.report import BadReport, PresetReport, check_report, read_report
from dstack.cli.presets.sessions import DONE, FAILED, RUNNING, STOPPED, Session, find_session
from dstack.core.configurations import PresetConfiguration
from dstack.core.configurations.preset import PresetPromptFile

LOOK_SECONDS = 0.3
END_SECONDS = 10.0
"""What the agent has to end, once it is asked to."""
ANSWER_SECONDS = 60.0
"""What the service has to answer the request that checks it."""
LOG_TAIL = 400
"""Characters."""

Document = dict[str, Any]


def start(
    context: Context, session: Session, agent: CodingAgent, wishes: str | None, previous: list[Session]
) -> subprocess.Popen[bytes]:
    """The agent at work, with a folder to work in."""
    shown = session.wanted.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    (session.folder / "preset.dstack.yml").write_text(yaml.safe_dump({"type": "preset"} | shown, sort_keys=False))
    if wishes:
        (session.folder / "wishes.md").write_text(wishes)
    for other in previous:
        _copy_results(other, session.workspace / "previous" / other.id)
    return start_agent(agent, session, make_prompt(session, wishes), context)


def read_wishes(configuration: PresetConfiguration, folder: Path) -> str | None:
    """The prompt of the configuration, which may be in a file."""
    if not isinstance(configuration.prompt, PresetPromptFile):
        return configuration.prompt
    path = folder / configuration.prompt.path
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"The prompt {path} cannot be read: {error}") from error


def find_previous(names: list[str]) -> list[Session]:
    """Raises CliError for one that there is not."""
    return [find_session(name) for name in names]


def _copy_results(other: Session, target: Path) -> None:
    target.mkdir(parents=True)
    for name in ("NOTES.md", "progress.jsonl", "report.json"):
        source = other.workspace / name
        if source.exists():
            (target / name).write_bytes(source.read_bytes())


def resume(context: Context, session: Session) -> subprocess.Popen[bytes]:
    """An agent that goes on where another was interrupted or stopped. Raises CliError."""
    if session.is_at_work():
        raise CliError(f"The preset {session.id} is being made: `dstack preset logs -f {session.id}` follows it")
    if session.status not in (RUNNING, STOPPED):
        raise CliError(f"The preset {session.id} is {session.status}; only an interrupted or stopped one goes on")
    agent = find_agent(session.wanted.agent, os.environ)
    (session.workspace / "report.json").unlink(missing_ok=True)
    saved = session.folder / "wishes.md"
    wishes = saved.read_text() if saved.exists() else None
    session.status, session.error, session.provider = RUNNING, None, agent.provider
    return start_agent(agent, session, make_prompt(session, wishes, again=True), context)


def follow(session: Session, process: subprocess.Popen[bytes] | None, tell: Callable[[str], None]) -> None:
    """Tells the progress, from the first line on, until the agent has ended. `process`: when it is ours."""
    told = 0
    while True:
        is_over = process.poll() is not None if process is not None else not session.is_at_work()
        entries = session.progress()
        for entry in entries[told:]:
            tell(format_entry(entry))
        told = len(entries)
        if is_over:
            return
        time.sleep(LOOK_SECONDS)


def format_entry(entry: Document) -> str:
    """A line of the progress."""
    at = entry.get("time")
    moment = time.strftime("[%H:%M:%S] ", time.localtime(at)) if isinstance(at, (int, float)) else ""
    trial = f"trial {entry['trial']}: " if entry.get("trial") else ""
    return f"{moment}{trial}{entry.get('message', '')}"


def finish(context: Context, session: Session) -> None:
    """Checks what the agent, which has ended, reports, and stops runs that it left."""
    kept = None
    try:
        report = read_report(session.workspace / "report.json")
        check_report(report, session.wanted, session.run_prefix)
        _check_service(context, report)
    except BadReport as error:
        session.status, session.error = FAILED, f"{error}{_last_words(session)}"
    else:
        kept = report.run_name if session.keep_service else None
        session.status, session.error = DONE, None
        session.report = report.model_dump(mode="json")
        (session.folder / "service.dstack.yml").write_text(report.service or "")
    session.save()
    stop_runs(context, session, kept=kept)


def _check_service(context: Context, report: PresetReport) -> None:
    """Whether the service that is reported runs and answers. Raises BadReport."""
    runs = context.rest.runs.list(context.project, only_active=True)
    run = next((run for run in runs if run["run_spec"]["run_name"] == report.run_name), None)
    if run is None or run["status"] != "running" or not run.get("service"):
        raise BadReport(f"{report.run_name}, which the agent reports, is no running service")
    url = urljoin(f"{context.rest.base_url.rstrip('/')}/", run["service"]["url"]).rstrip("/") + "/v1/models"
    deadline = time.monotonic() + ANSWER_SECONDS
    while (problem := _ask(url, context.rest.token)) is not None:
        if time.monotonic() > deadline:
            raise BadReport(f"{report.run_name} does not answer at {url}: {problem}")
        time.sleep(LOOK_SECONDS)


def _ask(url: str, token: str | None) -> str | None:
    """Why there is no good answer; None when there is one."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return None
    except OSError as error:
        return str(error)


def _last_words(session: Session) -> str:
    """The end of what the agent wrote to its standard error."""
    words = (session.folder / "agent.log").read_text(errors="replace").strip()[-LOG_TAIL:]
    return f"; its last words: {words}" if words else ""


def stop_agent(session: Session) -> None:
    """With all that it started; waits until it has ended."""
    if session.is_at_work() and session.process is not None:
        _signal(session.process, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while session.is_at_work() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        _signal(session.process, signal.SIGKILL)
    session.status = STOPPED
    session.save()


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # all of it has ended


def stop_runs(context: Context, session: Session, *, kept: str | None = None) -> None:
    """Those that the agent left."""
    runs = context.rest.runs.list(context.project, only_active=True)
    names = [run["run_spec"]["run_name"] for run in runs]
    left = [name for name in names if name.startswith(session.run_prefix) and name != kept]
    if left:
        context.rest.runs.stop(context.project, left)

"""Presets on this machine: one folder each under `~/.dstack/presets`.

| file | what it is |
|---|---|
| `preset.json` | what is known of the preset: `Session` |
| `preset.dstack.yml` | what was asked for |
| `workspace/` | where the agent works; its `progress.jsonl` and `report.json` are read |
| `prompt.md` | what the agent was told |
| `trace.jsonl`, `agent.log` | what it wrote to its standard output and error |
| `service.dstack.yml` | the outcome |
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstack.api.ssh.keys import write_private
from dstack.cli.errors import CliError
from dstack.cli.output.values import now_utc
from dstack.core.configurations import PresetConfiguration

RUNNING, DONE, FAILED, STOPPED, INTERRUPTED = "running", "done", "failed", "stopped", "interrupted"


@dataclass
class Session:
    """The making of a preset, and what came of it."""

    id: str
    name: str
    project: str
    provider: str
    created_at: str
    configuration: dict[str, Any]
    status: str = RUNNING
    error: str | None = None
    keep_service: bool = False
    process: int | None = None
    """The id of the agent's process, which leads a group of its own."""
    process_started: str = ""
    """From `process_start`: another process may get the id."""
    report: dict[str, Any] | None = None
    """Of a preset that is done."""

    @property
    def folder(self) -> Path:
        return presets_folder() / self.id

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def run_prefix(self) -> str:
        """How the names of its runs begin."""
        return f"{self.name}-{self.id[:4]}"

    @property
    def wanted(self) -> PresetConfiguration:
        """What was asked for."""
        return PresetConfiguration.model_validate(self.configuration)

    def is_at_work(self) -> bool:
        """Whether the agent's process is there."""
        return self.process is not None and process_start(self.process) == self.process_started != ""

    def shown_status(self) -> str:
        """`interrupted` when the agent has ended and nobody has taken note of it."""
        return INTERRUPTED if self.status == RUNNING and not self.is_at_work() else self.status

    def progress(self) -> list[dict[str, Any]]:
        """What the agent has told so far: `message`, and `trial` where one was measured."""
        path = self.workspace / "progress.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [_entry(line) for line in lines if line.strip()]

    def measured(self) -> int:
        """How many trials were."""
        return len({entry["trial"] for entry in self.progress() if entry.get("trial")})

    def save(self) -> None:
        write_private(self.folder / "preset.json", json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        names = ("id", "name", "project", "created_at", "error", "configuration", "report")
        return {"status": self.shown_status()} | {name: getattr(self, name) for name in names}


def _entry(line: str) -> dict[str, Any]:
    """Agents may write plain text too."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {"message": line}


def presets_folder() -> Path:
    """Of the current user."""
    return Path.home() / ".dstack" / "presets"


def new_session(configuration: PresetConfiguration, *, project: str, provider: str, keep_service: bool) -> Session:
    """With its folder, in which nothing has happened yet."""
    session = Session(
        id=secrets.token_hex(4),
        name=configuration.name or "preset",
        project=project,
        provider=provider,
        created_at=now_utc().isoformat().replace("+00:00", "Z"),
        configuration=configuration.model_dump(mode="json"),
        keep_service=keep_service,
    )
    presets_folder().mkdir(parents=True, exist_ok=True)
    session.folder.mkdir(mode=0o700)
    session.workspace.mkdir()
    session.save()
    return session


def iter_sessions() -> Iterator[Session]:
    """The newest first."""
    folder = presets_folder()
    found = [_load(path) for path in folder.glob("*/preset.json")] if folder.is_dir() else []
    yield from sorted(found, key=lambda session: session.created_at, reverse=True)


def _load(path: Path) -> Session:
    try:
        return Session(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CliError(f"{path} is not a preset of this program: {error}; delete its folder") from error


def find_session(name: str) -> Session:
    """By its id, or the newest of that name. Raises CliError."""
    for session in iter_sessions():
        if name in (session.id, session.name):
            return session
    raise CliError(f"There is no preset {name!r}; `dstack preset -a` shows all of them")


def delete_session(session: Session) -> None:
    """Raises CliError while the agent is at work."""
    if session.is_at_work():
        raise CliError(f"The preset {session.id} is being made: stop it with `dstack preset stop {session.id}`")
    shutil.rmtree(session.folder)


def process_start(process: int) -> str:
    """When the process was started, as this machine counts; empty when there is none, or it has ended."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else fields[19]
    listed = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    state, _, started = listed.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()

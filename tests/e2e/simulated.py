"""A simulated cloud as a process, for servers that run the `fake` backend."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import ServerProcess, clean_environment, unix_call, wait_for


@dataclass
class Simulator:
    """`python -m dstack.agent.simulator`: hosts that speak the agent's protocol and run nothing."""

    folder: Path
    process: subprocess.Popen[bytes]

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path) -> Iterator[Simulator]:
        """Ends with the block."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dstack.agent.simulator", "--dir", str(folder)]
        simulator = cls(folder, subprocess.Popen(command, env=clean_environment(folder)))
        try:
            wait_for("the simulated cloud", lambda: simulator.call("/instances") is not None)
            yield simulator
        finally:
            simulator.process.send_signal(signal.SIGTERM)
            simulator.process.wait(timeout=10)

    def call(self, path: str) -> Any:
        return unix_call(self.folder / "cloud.sock", "GET", path)

    def starts(self) -> dict[str, int]:
        """How often each task was started."""
        found: dict[str, int] = self.call("/starts")
        return found

    def write_server_config(self, server_dir: Path) -> None:
        """A `config.yml` whose project `main` has this cloud as its backend."""
        server_dir.mkdir(parents=True, exist_ok=True)
        lines = ["projects:", "- name: main", "  backends:", "  - type: fake", f"    dir: {self.folder}", ""]
        (server_dir / "config.yml").write_text("\n".join(lines))

    def apply_fleet(self, server: ServerProcess, nodes: int, blocks: int | str = "auto") -> None:
        """A fleet of that many simulated hosts, all idle when this returns."""
        configuration = {"type": "fleet", "name": "simulated", "nodes": nodes, "blocks": blocks}
        spec = {"configuration": configuration, "profile": {"name": "default"}}
        server.post("/api/project/main/fleets/apply", {"plan": {"spec": spec}, "force": False})

        def idle() -> bool:
            fleet = server.post("/api/project/main/fleets/get", {"name": "simulated"})
            return [instance["status"] for instance in fleet["instances"]] == ["idle"] * nodes

        wait_for("idle simulated hosts", idle, 60)

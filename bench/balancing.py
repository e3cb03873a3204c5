"""What the policies of balancing and the models API cost the proxy."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.harness import clean_environment

from bench.measure import Benchmark, Result
from bench.proxy import ROOT, TOKEN, cpu_seconds, free_port, start_nginx, wait_for_port

SECONDS = 2
CONNECTIONS = 32
SERVER = """server {{ listen {port}; location / {{ return 200 "{body}"; }} }}"""
MESSAGES = [{"role": "system", "content": "y" * 800}, {"role": "user", "content": "Hello"}]
SCRIPT = """
wrk.method = "POST"
wrk.body = [[{body}]]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {token}"
"""
PATHS = {
    **{name: f"/proxy/services/main/{name}/x" for name in ("random", "least_requests", "session", "prefix")},
    "models API": "/proxy/models/main/chat/completions",
}


def balancing_cost(folder: Path) -> list[Result]:
    """CPU time of the proxy for a chat request of 1 KB by policy, and through the models API; 32 connections"""
    folder.chmod(0o755)
    backend, ours = free_port(), free_port()
    script = folder / "post.lua"
    script.write_text(SCRIPT.format(body=json.dumps({"model": "bench", "messages": MESSAGES}), token=TOKEN))
    command = [sys.executable, "-m", "bench.proxy_server", str(ours), str(backend), "protocol"]
    environment = {**clean_environment(folder), "PYTHONPATH": str(ROOT / "src")}
    server = subprocess.Popen(command, cwd=ROOT, env=environment)
    nginx = start_nginx(folder, "backend", SERVER.format(port=backend, body="x" * 1024))
    try:
        wait_for_port(backend)
        wait_for_port(ours)
        return [
            Result(f"proxy, CPU of a chat request, {name}", "", f"{_cost(script, ours, path, server.pid):.0f} us")
            for name, path in PATHS.items()
        ]
    finally:
        for process in (server, nginx):
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=10)


def _cost(script: Path, port: int, path: str, pid: int) -> float:
    """Microseconds a request."""
    before = cpu_seconds(pid)
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{SECONDS}s",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}{path}",
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        raise RuntimeError(f"{path}: {output}")
    requests = int(re.findall(r"(\d+) requests in", output)[0])
    return (cpu_seconds(pid) - before) / requests * 1e6


BENCHMARKS: list[Benchmark] = [balancing_cost]

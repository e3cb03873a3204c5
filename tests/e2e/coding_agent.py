"""What the tests run as a coding agent: reads its task from standard input, and serves what is asked for, at once.

`HOW` says what it does: `finds`, `gives-up`, `waits` (until it is to go on), `boasts` (of what does not run).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ANSWER = "mkdir -p v1 && echo '{}' > v1/models"
BENCHMARK = {
    "tool": "none 1.0",
    "command": "none",
    "requests": 8,
    "failed_requests": 0,
    "output_tok_per_s": 1234.5,
    "ttft_ms_p50": 20,
    "ttft_ms_p99": 90,
}


def main() -> None:
    task, how = sys.stdin.read(), os.environ["HOW"]
    Path("started.json").write_text(json.dumps({"argv": sys.argv[1:], "key": os.environ.get("ANTHROPIC_API_KEY")}))
    found = re.search(r"Names of all runs begin with `(\S+)`", task)
    assert found is not None
    name = f"{found[1]}-1"
    text = json.dumps(service(name, os.environ["PORT"]))
    if how == "gives-up":
        sys.stderr.write("there is no GPU\n")
        report({"success": False, "failure": "it does not fit", "trials": 0})
        return
    if how != "boasts":
        Path("service.yml").write_text(text)
        subprocess.run(["dstack", "apply", "-f", "service.yml", "-y", "-d"], check=True)
        subprocess.run(["progress", f"{name} is submitted"], check=True)
        while json.loads(dstack("run", "get", name, "--json"))["status"] != "running":
            time.sleep(0.1)
        subprocess.run(["progress", "measured", "--trial", "1"], check=True)
    if how == "waits" and "You were interrupted" not in task:
        time.sleep(1000)
    report(
        {
            "success": True,
            "trials": 1,
            "run_name": name,
            "service": text,
            "model": "org/tiny",
            "context_length": 8192,
            "benchmark": BENCHMARK,
        }
    )


def service(name: str, port: str) -> dict[str, object]:
    return {
        "type": "service",
        "name": name,
        "port": int(port),
        "model": "tiny",
        "env": ["GREETING"],
        "probes": [],
        "commands": [ANSWER, f"python3 -m http.server {port} --bind 127.0.0.1"],
        "resources": {"cpu": "1..", "memory": "0.1GB..", "disk": "0.1GB.."},
    }


def dstack(*argv: str) -> str:
    return subprocess.run(["dstack", *argv], check=True, stdout=subprocess.PIPE, text=True).stdout


def report(outcome: dict[str, object]) -> None:
    Path("report.json").write_text(json.dumps(outcome))


main()

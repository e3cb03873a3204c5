"""The models of a project on a real server: both formats, asked by OpenAI's clients for JavaScript and Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.e2e.harness import ROOT, TOKEN, ServerProcess, wait_for
from tests.fixtures.ports import take_free_port

SDK = ROOT / ".cache/openai-js"
FIXTURES = ROOT / "tests/fixtures"


def apply(server: ServerProcess, name: str, replica: str, model: Any, **more: Any) -> None:
    """A service whose program is a replica of the fixtures."""
    port = take_free_port()
    command = f"exec {sys.executable} {FIXTURES / replica} {port}"
    configuration = {"type": "service", "port": port, "commands": [command], "model": model, "probes": [], **more}
    spec = {"run_name": name, "configuration": configuration}
    server.post("/api/project/main/runs/apply", {"plan": {"run_spec": spec}, "force": False})


@pytest.fixture
def url(server: ServerProcess) -> str:
    """Of the API, once both models answer."""
    falcon = {"name": "falcon", "format": "tgi", "chat_template": "{{ messages[0].content }}", "eos_token": "</s>"}
    apply(server, "speaking", "openai_server.py", "llama")
    apply(server, "generating", "tgi_server.py", falcon)
    listing = "/proxy/models/main/models"
    wait_for("the models", lambda: len(server.call("GET", listing)["data"]) == 2, 60)
    return f"{server.url}/proxy/models/main"


def test_openais_client_for_javascript(url: str) -> None:
    install = subprocess.run([str(ROOT / "scripts/install-openai-js")], capture_output=True, text=True)
    assert install.returncode == 0, install.stderr
    node = shutil.which("node")
    if node is None or not (SDK / "installed.json").exists():
        pytest.skip(install.stdout or "Node.js is not installed")
    script = Path(__file__).with_name("openai_client.mjs")
    ran = subprocess.run([node, str(script), str(SDK), url, TOKEN], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "models": ["falcon", "llama"],
        "whole": "One two three",
        "stream": "One two three",
        "tool": "weather",
        "embedding": [0.5, 0.25],
        "tgi": "One, two, three",
        "tgiStream": "One, two, three",
        "unknown": {"class": "NotFoundError", "status": 404, "code": "model_not_found"},
        "theirs": {"class": "RateLimitError", "status": 429},
        "late": {"class": "APIError", "code": None},
        "stranger": {"class": "PermissionDeniedError", "status": 403, "code": "invalid_api_key"},
    }


def test_a_newer_run_takes_the_name_over_and_a_sleeping_one_is_woken(server: ServerProcess, url: str) -> None:
    scaling = {"metric": "rps", "target": 10}
    apply(server, "newer", "openai_server.py", "llama", replicas="0..1", scaling=scaling)
    assert server.run("newer")["jobs"] == []
    with OpenAI(base_url=url, api_key=TOKEN, max_retries=0, timeout=60) as client:
        messages: Any = [{"role": "user", "content": "Count"}]
        answer = client.chat.completions.create(model="llama", messages=messages)
        assert answer.choices[0].message.content == "One two three"
    run = server.run("newer")
    assert [job["job_submissions"][-1]["status"] for job in run["jobs"]] == ["running"]
    spec = run["service"]["model"]
    assert (spec["name"], spec["base_url"]) == ("llama", "/proxy/services/main/newer/v1")
    assert server.run("generating")["service"]["model"]["base_url"] == "/proxy/models/main/"
    assert "Traceback" not in server.output

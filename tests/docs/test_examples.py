"""Every example is valid, and the server can make jobs of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from tests.fixtures.processes import StartProcess, wait_until

from dstack.core.configurations import parse_apply_configuration, parse_run_configuration
from dstack.core.images import Images
from dstack.core.job_specs import effective_run_spec, make_job_specs
from dstack.core.jobs import JobSpec
from dstack.core.runs import RunSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.dstack.yml"))


def test_there_are_examples() -> None:
    assert {path.parent.name for path in EXAMPLES} >= {"hello"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_example_is_valid(path: Path) -> None:
    configuration = parse_apply_configuration(yaml.safe_load(path.read_text()))
    assert configuration.type in path.name or path.name.startswith(configuration.type)


def job_of(path: Path, port: int | None = None) -> JobSpec:
    """The one job of a run example, as the server makes it; with another port where one is given."""
    text = path.read_text()
    configuration = parse_run_configuration(yaml.safe_load(text.replace("8000", str(port)) if port else text))
    spec = effective_run_spec(RunSpec(configuration=configuration), run_name="example", ssh_key_pub=None)
    [job] = make_job_specs(spec, run_name="example", images=Images())
    return job


@pytest.mark.parametrize("path", sorted((ROOT / "examples/hello").glob("*.yml")), ids=lambda path: path.name)
def test_a_hello_example_fits_a_small_machine(path: Path) -> None:
    resources = job_of(path).requirements.resources
    assert resources.gpu is None or resources.gpu.count.min == 0
    assert (resources.memory.min or 0) <= 0.5


def test_the_hello_task_runs() -> None:
    job = job_of(ROOT / "examples/hello/task.dstack.yml")
    ended = subprocess.run(job.commands, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    assert ended.stdout.splitlines()[-4:] == ["step 1", "step 2", "step 3", "done"]


def test_the_hello_service_answers(free_port: int, start_process: StartProcess) -> None:
    job = job_of(ROOT / "examples/hello/service.dstack.yml", free_port)
    assert job.service_port == free_port
    start_process(job.commands, stdin=subprocess.DEVNULL)

    def answer() -> dict[str, object] | None:
        try:
            found: dict[str, object] = httpx.get(f"http://127.0.0.1:{free_port}/").json()
        except httpx.TransportError:
            return None
        return found

    assert wait_until(answer, what="the service to listen")["message"] == "Hello!"
    sent = httpx.post(f"http://127.0.0.1:{free_port}/anything", content=b"12345")
    assert sent.json() == {"received_bytes": 5}
    assert httpx.get(f"http://127.0.0.1:{free_port}/nothing").status_code == 404

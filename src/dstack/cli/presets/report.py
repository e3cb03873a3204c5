"""What the coding agent leaves behind when it is done: `report.json`, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from dstack.core.configurations import PresetConfiguration, ServiceConfiguration, parse_apply_configuration
from dstack.core.configurations.problems import ConfigurationError, describe_problems, load_yaml
from dstack.core.models import CoreModel


class BadReport(Exception):
    """There is none, or it does not hold; the text says why."""


class PresetBenchmark(CoreModel):
    """How the service did under the load that was asked for."""

    tool: str
    """Name and version of what measured it."""
    command: str
    """How it was called."""
    requests: Annotated[int, Field(gt=0)]
    failed_requests: Annotated[int, Field(ge=0)]
    output_tok_per_s: Annotated[float, Field(gt=0)]
    """Of all requests together."""
    ttft_ms_p50: Annotated[float, Field(ge=0)]
    ttft_ms_p99: Annotated[float, Field(ge=0)]


class PresetReport(CoreModel):
    """The outcome. What follows `failure` is there unless it failed."""

    success: bool
    failure: str | None = None
    """Why nothing was found."""
    trials: Annotated[int, Field(ge=0)]
    """How many were measured."""
    run_name: str | None = None
    """Of the service that runs with the best of them."""
    service: str | None = None
    """Its configuration, in YAML."""
    model: str | None = None
    """The repository that it serves."""
    context_length: Annotated[int, Field(gt=0)] | None = None
    benchmark: PresetBenchmark | None = None

    def configuration(self) -> ServiceConfiguration:
        """Of the service. Raises BadReport."""
        text = self.service or ""
        try:
            data = load_yaml(text, "service")
            if not isinstance(data, dict) or data.get("type") != "service":
                raise BadReport("'service' of the agent's report is no configuration of a service")
            found = parse_apply_configuration(data)
        except ConfigurationError as error:
            raise BadReport(f"'service' of the agent's report: {error}") from error
        except ValidationError as error:
            problems = describe_problems(error, text=text, file="service")
            raise BadReport(f"'service' of the agent's report: {problems}") from error
        assert isinstance(found, ServiceConfiguration)
        return found


def read_report(path: Path) -> PresetReport:
    """Raises BadReport."""
    try:
        return PresetReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BadReport("The agent ended without a report") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise BadReport(f"The agent's report does not hold: {problems}") from error


def check_report(report: PresetReport, wanted: PresetConfiguration, run_prefix: str) -> None:
    """Whether it is a success that keeps to what was asked for. Raises BadReport."""
    if not report.success:
        raise BadReport(report.failure or "The agent found no way to serve the model, and does not say why")
    missing = [name for name in _OF_SUCCESS if getattr(report, name) is None]
    if missing:
        raise BadReport(f"The agent's report lacks {', '.join(missing)}")
    report.configuration()
    assert report.benchmark is not None
    if not str(report.run_name).startswith(run_prefix):
        raise BadReport(f"The agent's report is about {report.run_name}, which is no run of this preset")
    if (report.context_length or 0) < (wanted.min_context_length or 0):
        raise BadReport(f"{report.context_length} tokens of context; {wanted.min_context_length} are asked for")
    if report.benchmark.ttft_ms_p99 > (wanted.max_ttft or 0):
        raise BadReport(
            f"{report.benchmark.ttft_ms_p99:g} ms to the first token; at most {wanted.max_ttft} may be"
        )
    if report.benchmark.failed_requests:
        raise BadReport(f"{report.benchmark.failed_requests} requests of the measurement failed")


_OF_SUCCESS = ("run_name", "service", "model", "context_length", "benchmark")


def report_schema() -> str:
    """In JSON, for the agent."""
    return json.dumps(PresetReport.model_json_schema(), indent=2)

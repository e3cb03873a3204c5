"""What our own description of the API promises, tried with made-up requests at a real server.

For every operation: no failure of the server (5xx), and answers of the described shape. Few examples each, always
the same, so that a run is short and repeats. Bodies of wrong types are tried in `test_malformed_bodies`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from tests.e2e.harness import TOKEN, ServerProcess

from dstack.server.api.describe import openapi
from dstack.server.app import api_routes

EXAMPLES = 4
ENDLESS = ("/runs/watch", "/logs/follow")
"""Answers to what is right are streams without an end."""


@pytest.fixture
def base_url(tmp_path: Any) -> Iterator[str]:
    """A server that orchestrates nothing, so that what is made up here starts nothing."""
    env = {"DSTACK_SERVER_BACKGROUND_PROCESSING_DISABLED": "1"}
    server = ServerProcess(tmp_path / "home", env=env).start()
    yield server.url
    server.end()


@pytest.mark.timeout(300)
def test_every_operation_keeps_its_promise(base_url: str) -> None:
    import schemathesis  # noqa: PLC0415 - takes seconds, which the collection of other tests need not spend

    schema: Any = schemathesis.openapi.from_dict(openapi(api_routes()))
    tried, failures = 0, []
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith(ENDLESS):
            continue
        tried += 1
        try:
            try_operation(operation, base_url)
        except Exception as error:  # noqa: BLE001 - all operations are tried before any of it is told
            failures.append(f"{operation.label}: {error}")
    assert failures == [], "\n\n".join(failures)
    assert tried > 80


def try_operation(operation: Any, base_url: str) -> None:
    from schemathesis.checks import not_a_server_error  # noqa: PLC0415 - see above
    from schemathesis.specs.openapi.checks import (  # noqa: PLC0415 - see above
        content_type_conformance,
        response_schema_conformance,
    )

    checks = [not_a_server_error, response_schema_conformance, content_type_conformance]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def attempt(case: Any) -> None:
        if "project_name" in (case.path_parameters or {}):
            case.path_parameters["project_name"] = "main"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        response = case.call(base_url=base_url, headers=headers, timeout=20)
        case.validate_response(response, checks=checks)

    attempt()

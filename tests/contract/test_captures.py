"""Real requests of published clients: each is answered with the shape that it was answered with then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.api import Api

CAPTURES = Path(__file__).parents[1] / "reference" / "captures"
ARCHIVE = "def7f70fcea687b7f689cc18e615d97ea23f6348564160c72d604dd7d9070d81"
REPLAYED = (
    "01-project-get",
    "02-project-get.bad-token",
    "03-project-get.unknown-project",
    "04-users-get_my_user",
    "05-runs-list.only-active",
    "11-repos-init.virtual",
    "13-runs-get_plan.task",
    "14-runs-apply.task",
    "16-runs-get_plan.dev-environment",
    "17-runs-apply.dev-environment",
    "18-runs-get_plan.service",
    "19-runs-apply.service",
    "21-gateways-get_plan",
    "22-gateways-apply.400",
    "23-volumes-get.400-not-exists",
    "24-volumes-create",
    "25-volumes-list",
    "26-secrets-create_or_update",
    "27-secrets-list",
    "28-secrets-get",
    "29-events-list",
    "30-runs-stop",
    "33-runs-get.400-not-exists",
    "34-logs-poll",
    "36-runs-get_plan.offer",
)
SECRETS_FIRST = ("27-secrets-list", "28-secrets-get", "29-events-list")


def captured(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CAPTURES / f"{name}.json").read_text())
    return loaded


@pytest.mark.parametrize("name", REPLAYED)
async def test_an_answer_has_the_shape_of_the_captured_one(sqlite_api: Api, name: str) -> None:
    capture = captured(name)
    if name in SECRETS_FIRST:
        await sqlite_api.ok("project/main/secrets/create_or_update", {"name": "tok", "value": "abc"})
    if name == "25-volumes-list":
        await sqlite_api.ok("project/main/volumes/create", captured("24-volumes-create")["request"]["body"])
    request = await prepared(sqlite_api, capture["request"])
    api = Api(sqlite_api.app, "unknown") if "bad-token" in name else sqlite_api
    answer = await api.post(
        request["path"].removeprefix("/api/"), request["body"], headers={"X-API-VERSION": "0.22.5"}
    )
    expected = capture["response"]
    assert answer.status_code == expected["status"], answer.text
    assert answer.headers["content-type"] == expected["content_type"]
    differences = list(compare(expected["body"], answer.json(), "$"))
    assert differences == []


async def prepared(api: Api, request: dict[str, Any]) -> dict[str, Any]:
    """Ids of things that were made before are replaced by those of the same things here."""
    text = json.dumps(request)
    if "1f44fa1d-ead4-4039-9bd2-4c14fe8ad287" in text:
        archive = await api.ok("files/upload_archive", files={"file": (ARCHIVE, b"tar")})
        text = text.replace("1f44fa1d-ead4-4039-9bd2-4c14fe8ad287", archive["id"])
    project = (await api.ok("projects/main/get"))["project_id"]
    loaded: dict[str, Any] = json.loads(text.replace("bacc66db-2433-43f2-bd91-552f9771a09b", project))
    return loaded


def compare(expected: Any, actual: Any, where: str) -> Iterator[str]:
    """Keys that are missing and types that differ. null on either side says nothing; further keys are allowed."""
    if expected is None or actual is None:
        return
    if kind(expected) != kind(actual):
        yield f"{where}: {kind(actual)} instead of {kind(expected)}"
    elif isinstance(expected, dict) and not where.endswith(".env"):
        for key, value in expected.items():
            if key in actual:
                yield from compare(value, actual[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: missing"
    elif isinstance(expected, list) and expected and actual:
        yield from compare(expected[0], actual[0], f"{where}[0]")


def kind(value: Any) -> str:
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


async def test_the_metrics_of_a_run_that_was_not_measured(sqlite_api: Api) -> None:
    capture = json.loads((CAPTURES / "35-metrics-job.json").read_text())
    await sqlite_api.ok(
        "project/main/runs/apply",
        {"plan": {"run_spec": {"run_name": "t1", "configuration": {"type": "task", "commands": ["true"]}}}}
        | {"force": False},
    )
    answer = await sqlite_api.client.get(
        capture["request"]["path"], headers={"X-API-VERSION": capture["request"]["headers"]["X-API-VERSION"]}
    )
    assert (answer.status_code, answer.json()) == (200, capture["response"]["body"])
    assert answer.headers["content-type"] == capture["response"]["content_type"]

"""Error bodies (reference: wire, section 3) and version negotiation (section 2)."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tests.fixtures.api import Api

from dstack.core import errors
from dstack.server.api.errors import request_error


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (errors.InvalidRequest("m"), 400, {"detail": [{"msg": "m", "code": "error"}]}),
        (errors.ResourceExists("m"), 400, {"detail": [{"msg": "m", "code": "resource_exists"}]}),
        (errors.ResourceNotExists("m"), 400, {"detail": [{"msg": "m", "code": "resource_not_exists"}]}),
        (
            errors.InvalidCredentials("m", fields=[["creds", "access_key"]]),
            400,
            {"detail": [{"msg": "m", "code": "invalid_credentials", "fields": [["creds", "access_key"]]}]},
        ),
        (errors.BackendNotAvailable("m"), 400, {"detail": [{"msg": "m", "code": "backend_not_available"}]}),
        (errors.RepoNotExists("m"), 400, {"detail": [{"msg": "m", "code": "repo_does_not_exist"}]}),
        (errors.GatewayProblem("m"), 400, {"detail": [{"msg": "m", "code": "gateway_error"}]}),
        (errors.NotAuthenticated("m"), 401, {"detail": "m"}),
        (errors.Forbidden("m"), 403, {"detail": {"msg": "m", "code": None}}),
        (errors.ProjectNotFound("m"), 404, {"detail": {"msg": "m", "code": None}}),
        (errors.TooManyAttempts("m", retry_after_seconds=3), 429, {"detail": {"msg": "m", "code": None}}),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_each_kind_of_error_has_its_body(error: errors.RequestError, status: int, body: Any) -> None:
    answer = request_error(error)
    assert (answer.status_code, orjson.loads(answer.body)) == (status, body)
    assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
    assert answer.headers.get("Retry-After") == ("3" if status == 429 else None)


async def test_unknown_paths(sqlite_api: Api) -> None:
    got = await sqlite_api.client.get("/api/nope")
    assert (got.status_code, got.json()) == (404, {"detail": "Not Found"})
    posted = await sqlite_api.client.post("/api/nope")
    assert (posted.status_code, posted.headers["Allow"]) == (405, "GET, HEAD")
    assert isinstance(posted.json()["detail"], str)
    assert (await sqlite_api.client.get("/api/users/list")).status_code == 404


@pytest.mark.parametrize(
    ("options", "kind", "loc"),
    [
        ({"json": {"run_names": []}}, "missing", ["body", "runs_names"]),
        ({"json": {"runs_names": [], "abort": False, "x": 1}}, "extra_forbidden", ["body", "x"]),
        ({"json": {"runs_names": "t1", "abort": False}}, "list_type", ["body", "runs_names"]),
        ({}, "missing", ["body"]),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, "json_invalid", ["body"]),
        ({"content": b'{"runs_names": [], "abort": false}'}, "model_attributes_type", ["body"]),
    ],
)
async def test_what_does_not_fit_the_schema_is_422(
    sqlite_api: Api, options: Any, kind: str, loc: list[str]
) -> None:
    answer = await sqlite_api.post("project/main/runs/stop", **options)
    assert answer.status_code == 422
    first = answer.json()["detail"][0]
    assert (first["type"], first["loc"]) == (kind, loc)
    assert {"type", "loc", "msg", "input"} <= first.keys()


@pytest.mark.parametrize(
    ("version", "status", "code"),
    [
        (None, 200, ""),
        ("latest", 200, ""),
        ("0.0.0", 200, ""),
        ("0.0.0.dev1", 200, ""),
        ("0.22.5", 200, ""),
        ("0.20.1", 200, ""),
        ("0.22.99", 200, ""),
        ("0.23.0", 400, "error"),
        ("1.0.0", 400, "error"),
        ("abc", 400, None),
    ],
)
async def test_versions(sqlite_api: Api, version: str | None, status: int, code: str | None) -> None:
    headers = {} if version is None else {"X-API-VERSION": version}
    for caller in (sqlite_api, sqlite_api.anonymous()):
        answer = await caller.post("server/get_info", headers=headers)
        assert answer.status_code == status
        if status == 400:
            assert answer.json()["detail"][0]["code"] == code
        else:
            assert answer.json() == {"server_version": "0.22.5"}
    health = await sqlite_api.client.get("/healthcheck", headers=headers)
    assert (health.status_code, health.json()) == (200, {"status": "running"})


async def test_the_version_is_checked_before_the_token(sqlite_api: Api) -> None:
    answer = await sqlite_api.anonymous().post("users/get_my_user", headers={"X-API-VERSION": "9.9.9"})
    assert answer.status_code == 400


async def test_a_text_with_nul_is_refused_and_an_escaped_backslash_is_not(sqlite_api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    for text, status in ((rb"a\u0000b", 422), (rb"a\\u0000b", 200), (rb"a\\\u0000b", 422)):
        body = b'{"name": "n", "value": "%b"}' % text
        answer = await sqlite_api.client.post(
            "/api/project/main/secrets/create_or_update", content=body, headers=headers
        )
        assert answer.status_code == status, text

"""Every operation of the reference is there, and what cannot be done here is said as there."""

from __future__ import annotations

import pytest
from tests.fixtures.api import Api, reference

from dstack.server.app import api_routes

ELSEWHERE = {
    "/metrics",
    "/proxy/models/{project_name}/chat/completions",
    "/proxy/models/{project_name}/models",
    "/proxy/services/{project_name}/{run_name}",
    "/proxy/services/{project_name}/{run_name}/{path}",
}
"""Not under `/api/`."""

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@laptop"


def test_every_operation_of_the_reference_is_here() -> None:
    ours = {(route.path, method.lower()) for route in api_routes() for method in route.methods or ()}
    theirs = {
        (path, method)
        for path, operations in reference()["paths"].items()
        for method in operations
        if path not in ELSEWHERE
    }
    assert theirs - ours == set()


async def test_public_keys_are_added_listed_and_deleted(api: Api) -> None:
    added = await api.ok("users/public_keys/add", {"key": KEY})
    assert (added["name"], added["type"]) == ("me@laptop", "ssh-ed25519")
    assert added["fingerprint"] == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
    assert await api.ok("users/public_keys/list") == [added]
    again = await api.post("users/public_keys/add", {"key": KEY, "name": "other"})
    assert again.json()["detail"][0]["code"] == "resource_exists"
    alice = await api.as_user("alice")
    assert await alice.ok("users/public_keys/list") == []
    foreign = await alice.post("users/public_keys/delete", {"ids": [added["id"]]})
    assert foreign.json()["detail"][0]["code"] == "resource_not_exists"
    assert await api.ok("users/public_keys/delete", {"ids": [added["id"]]}) is None
    assert await api.ok("users/public_keys/list") == []


NO_KEYS = ("", "ssh-ed25519", "ssh-ed25519 !!", "a\nb c", KEY.replace("ed25519", "rsa", 1))


@pytest.mark.parametrize("key", NO_KEYS)
async def test_what_is_no_key_is_refused(sqlite_api: Api, key: str) -> None:
    answer = await sqlite_api.post("users/public_keys/add", {"key": key})
    assert (answer.status_code, answer.json()["detail"][0]["code"]) == (400, "error")


async def test_projects_without_fleets(sqlite_api: Api) -> None:
    await sqlite_api.ok("projects/create", {"project_name": "empty"})
    spec = {"configuration": {"type": "fleet", "name": "ff", "nodes": 0}, "profile": {}}
    await sqlite_api.ok("project/main/fleets/apply", {"plan": {"spec": spec}, "force": False})
    found = await sqlite_api.ok("projects/list_only_no_fleets")
    assert [project["project_name"] for project in found] == ["empty"]


async def test_templates_are_none_without_a_repository(sqlite_api: Api) -> None:
    assert await sqlite_api.ok("project/main/templates/list") == []
    await sqlite_api.ok("projects/main/update", {"templates_repo": "https://example.org/t.git"})
    answer = await sqlite_api.post("project/main/templates/list")
    assert (answer.status_code, "reset_templates_repo" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("volumes/get", {"name": "v1"}, "resource_not_exists"),
        ("gateways/get", {"name": "g1"}, "resource_not_exists"),
        (
            "gateways/create",
            {"configuration": {"type": "gateway", "backend": "aws", "region": "r", "name": "g1"}},
            "backend_not_available",
        ),
        ("gateways/set_default", {"name": "g1"}, "resource_not_exists"),
        ("gateways/set_wildcard_domain", {"name": "g1", "wildcard_domain": "*.a.org"}, "resource_not_exists"),
    ],
)
async def test_what_cannot_be_done_has_its_code(
    sqlite_api: Api, path: str, body: dict[str, object] | None, code: str
) -> None:
    answer = await sqlite_api.post(f"project/main/{path}", body)
    assert (answer.status_code, answer.json()["detail"][0]["code"]) == (400, code)


async def test_empty_lists_and_deletions_of_what_is_not_there(sqlite_api: Api) -> None:
    assert await sqlite_api.ok("volumes/list", {}) == []
    assert await sqlite_api.ok("project/main/volumes/list") == []
    assert await sqlite_api.ok("project/main/gateways/list") == []
    assert await sqlite_api.ok("project/main/volumes/delete", {"names": ["v1"]}) is None
    assert await sqlite_api.ok("project/main/gateways/delete", {"names": ["g1"]}) is None
    assert (await sqlite_api.post("sshproxy/get_upstream", {"id": "x"})).status_code == 403

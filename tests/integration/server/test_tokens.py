"""Named tokens over the REST API (better B19) and limits of failed attempts (better B18)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import select
from tests.fixtures.api import ADMIN_TOKEN, Api

from dstack.core.errors import TooManyAttempts
from dstack.server import access as access_module
from dstack.server import clock
from dstack.server.db.tables import UserTokenRow
from dstack.server.proxy.auth import members_only


async def make(api: Api, name: str = "ci", **limits: Any) -> Api:
    """A caller with a new token."""
    made = await api.ok("users/tokens/create", {"name": name, **limits})
    return Api(api.app, made["token"])


async def may_use(api: Api, token: str | None, project: str = "main", address: str = "10.0.0.1") -> bool:
    """What the proxy is told."""
    assert token is not None
    ask = members_only(api.context.access, api.context.failed_attempts)
    return await ask(token, project, address) is not None


async def test_b19_a_named_token_is_shown_once_and_kept_as_a_hash(api: Api) -> None:
    made = await api.ok("users/tokens/create", {"name": "ci"})
    assert made["token"].startswith("dstack_")
    (listed,) = await api.ok("users/tokens/list")
    assert (listed["name"], listed["projects"], listed["services_only"]) == ("ci", None, False)
    assert "token" not in listed
    async with api.context.database.session() as session:
        row = (await session.scalars(select(UserTokenRow))).one()
    assert made["token"] not in str(vars(row))
    assert (await Api(api.app, made["token"]).ok("users/get_my_user"))["username"] == "admin"


async def test_b19_a_deleted_token_stops_at_once(api: Api) -> None:
    ci = await make(api)
    await ci.ok("projects/list")
    assert await may_use(api, ci.token)
    assert await api.ok("users/tokens/delete", {"names": ["ci"]}) is None
    assert (await ci.post("projects/list")).status_code == 403
    assert not await may_use(api, ci.token)
    again = await api.post("users/tokens/delete", {"names": ["ci"]})
    assert again.json()["detail"][0]["code"] == "resource_not_exists"


async def test_b19_an_expired_token_is_refused(sqlite_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    end = datetime.now(timezone.utc) + timedelta(hours=1)
    ci = await make(sqlite_api, expires_at=end.isoformat())
    await ci.ok("projects/list")
    monkeypatch.setattr(clock, "now", lambda: end)
    assert (await ci.post("projects/list")).status_code == 403
    assert not await may_use(sqlite_api, ci.token)


async def test_b19_a_token_for_some_projects_opens_these_only(api: Api) -> None:
    for name in ("one", "two"):
        await api.ok("projects/create", {"project_name": name})
    await api.ok("projects/two/update", {"is_public": True})
    ci = await make(api, projects=["one"])
    assert (await api.ok("users/tokens/list"))[0]["projects"] == ["one"]
    await ci.ok("projects/one/get")
    await ci.ok("project/one/secrets/create_or_update", {"name": "a", "value": "b"})
    assert [project["project_name"] for project in await ci.ok("projects/list")] == ["one"]
    refused = ("projects/two/get", "projects/two/add_members", "project/main/secrets/list")
    assert [(await ci.post(path, {})).status_code for path in refused] == [403, 403, 403]
    assert (await ci.post("runs/list", {"project_name": "two"})).status_code == 403
    assert await ci.ok("fleets/list", {"project_name": "main"}) == []
    assert {target["project_name"] for event in await ci.ok("events/list", {}) for target in event["targets"]} == {
        "one"
    }
    assert (await ci.post("projects/create", {"project_name": "x"})).status_code == 403
    assert (await ci.post("projects/delete", {"projects_names": ["two"]})).status_code == 403
    assert (await ci.post("users/create", {"username": "x", "global_role": "user"})).status_code == 403
    assert [await may_use(api, ci.token, name) for name in ("one", "two")] == [True, False]
    assert (await ci.ok("users/get_my_user"))["ssh_private_key"] is None


async def test_b19_a_token_for_services_calls_nothing_else(sqlite_api: Api) -> None:
    ci = await make(sqlite_api, services_only=True)
    assert await may_use(sqlite_api, ci.token)
    answer = await ci.post("users/get_my_user")
    assert (answer.status_code, "services" in answer.text) == (403, True)
    assert (await ci.post("project/main/runs/get", {"run_name": "x"})).status_code == 403


async def test_b19_a_named_token_shows_and_makes_no_other_credentials(sqlite_api: Api) -> None:
    ci = await make(sqlite_api)
    assert (await ci.ok("users/get_my_user"))["creds"]["token"] == ci.token
    for path, body in (
        ("users/get_user", {"username": "admin"}),
        ("users/refresh_token", {"username": "admin"}),
        ("users/refresh_ssh_key", {"username": "admin"}),
        ("users/tokens/create", {"name": "more"}),
        ("users/tokens/list", None),
    ):
        assert (await ci.post(path, body)).status_code == 403, path
    assert (await sqlite_api.ok("users/get_my_user"))["creds"]["token"] == ADMIN_TOKEN


async def test_b19_the_last_use_is_written_once_an_hour(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ci = await make(api)
    assert (await api.ok("users/tokens/list"))[0]["last_used_at"] is None
    await ci.ok("projects/list")
    first = (await api.ok("users/tokens/list"))[0]["last_used_at"]
    await ci.ok("projects/list")
    assert (await api.ok("users/tokens/list"))[0]["last_used_at"] == first
    later = clock.now() + access_module.USE_NOTED_EVERY
    monkeypatch.setattr(clock, "now", lambda: later)
    await ci.ok("projects/list")
    assert (await api.ok("users/tokens/list"))[0]["last_used_at"] > first


async def test_b19_tokens_end_with_their_user(api: Api) -> None:
    alice = await api.as_user("alice")
    ci = await make(alice)
    await ci.ok("projects/list")
    await api.ok("users/update", {"username": "alice", "global_role": "user", "active": False})
    assert (await ci.post("projects/list")).status_code == 403
    await api.ok("users/delete", {"users": ["alice"]})
    async with api.context.database.session() as session:
        assert (await session.scalars(select(UserTokenRow))).all() == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"name": "no spaces"}, "not a valid token name"),
        ({"name": "old", "expires_at": "2001-01-01T00:00:00Z"}, "in the past"),
        ({"name": "ci"}, "already"),
    ],
)
async def test_bad_wishes_are_explained(sqlite_api: Api, body: dict[str, Any], text: str) -> None:
    await make(sqlite_api)
    answer = await sqlite_api.post("users/tokens/create", body)
    assert answer.status_code == 400
    assert text in answer.json()["detail"][0]["msg"]


async def test_a_token_is_only_for_projects_of_its_user(sqlite_api: Api) -> None:
    alice = await sqlite_api.as_user("alice")
    answer = await alice.post("users/tokens/create", {"name": "ci", "projects": ["main"]})
    assert answer.status_code == 404


async def test_b18_api_and_proxy_count_failed_attempts_together(sqlite_api: Api) -> None:
    address = "127.0.0.1"
    sqlite_api.context.failed_attempts.clock = lambda: 0.0
    for _ in range(10):
        assert (await Api(sqlite_api.app, "wrong").post("projects/list")).status_code == 403
        assert not await may_use(sqlite_api, "wrong", address=address)
    with pytest.raises(TooManyAttempts) as caught:
        await may_use(sqlite_api, "wrong", address=address)
    assert caught.value.retry_after_seconds > 0
    limited = await Api(sqlite_api.app, "wrong").post("projects/list")
    assert limited.status_code == 429
    assert int(limited.headers["Retry-After"]) > 0
    assert await may_use(sqlite_api, ADMIN_TOKEN, address=address)
    assert not await may_use(sqlite_api, "wrong", address="10.9.9.9")

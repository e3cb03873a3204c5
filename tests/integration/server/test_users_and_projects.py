"""Users, tokens, projects, members over the REST API."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import update
from tests.fixtures.api import ADMIN_TOKEN, Api

from dstack.server.db.tables import ProjectRow, UserRow


async def test_my_user_has_token_and_keys(api: Api) -> None:
    user = await api.ok("users/get_my_user")
    assert user["username"] == "admin"
    assert user["creds"]["token"] == ADMIN_TOKEN
    assert user["ssh_public_key"].startswith("ssh-ed25519 ")
    assert "PRIVATE KEY" in user["ssh_private_key"]


async def test_a_refreshed_token_replaces_the_old_one_at_once(api: Api) -> None:
    alice = await api.as_user("alice")
    await alice.ok("users/get_my_user")
    new = (await alice.ok("users/refresh_token", {"username": "alice"}))["creds"]["token"]
    assert (await alice.post("users/get_my_user")).status_code == 403
    assert (await Api(api.app, new).ok("users/get_my_user"))["creds"]["token"] == new


async def test_users_are_made_changed_listed_and_deleted(api: Api) -> None:
    made = await api.ok("users/create", {"username": "bob", "global_role": "user", "email": "bob@example.org"})
    assert made["active"] is True
    taken = await api.post("users/create", {"username": "bob", "global_role": "user"})
    assert (taken.status_code, taken.json()["detail"][0]["code"]) == (400, "resource_exists")
    changed = await api.ok("users/update", {"username": "bob", "global_role": "admin", "active": False})
    assert (changed["global_role"], changed["active"], changed["email"]) == ("admin", False, None)
    assert [user["username"] for user in await api.ok("users/list")] == ["bob", "admin"]
    page = await api.ok("users/list", {"return_total_count": True, "limit": 1, "ascending": True})
    assert (page["total_count"], [user["username"] for user in page["users"]]) == (2, ["admin"])
    assert await api.ok("users/delete", {"users": ["bob"]}) is None
    assert [user["username"] for user in await api.ok("users/list")] == ["admin"]


async def test_an_inactive_user_is_refused(api: Api) -> None:
    alice = await api.as_user("alice")
    await alice.ok("users/get_my_user")
    await api.ok("users/update", {"username": "alice", "global_role": "user", "active": False})
    assert (await alice.post("users/get_my_user")).status_code == 403


async def test_projects_are_made_listed_and_deleted(api: Api) -> None:
    alice = await api.as_user("alice")
    made = await alice.ok("projects/create", {"project_name": "team"})
    assert (made["owner"]["username"], made["members"][0]["project_role"]) == ("alice", "admin")
    taken = await alice.post("projects/create", {"project_name": "team"})
    assert taken.json()["detail"][0]["code"] == "resource_exists"
    assert [project["project_name"] for project in await alice.ok("projects/list")] == ["team"]
    assert {project["project_name"] for project in await api.ok("projects/list")} == {"main", "team"}
    await alice.ok("projects/delete", {"projects_names": ["team"]})
    assert (await alice.post("projects/team/get")).status_code == 404
    await alice.ok("projects/create", {"project_name": "team"})


async def test_a_bad_project_name_is_explained(sqlite_api: Api) -> None:
    answer = await sqlite_api.post("projects/create", {"project_name": "no spaces"})
    assert answer.status_code == 400
    assert "not a valid project name" in answer.json()["detail"][0]["msg"]


async def test_the_quota_of_projects_holds_for_users_only(sqlite_api: Api) -> None:
    alice = await sqlite_api.as_user("alice")
    for number in range(10):
        await alice.ok("projects/create", {"project_name": f"p{number}"})
    answer = await alice.post("projects/create", {"project_name": "p10"})
    assert answer.status_code == 403
    await sqlite_api.ok("projects/create", {"project_name": "p10"})


async def test_members_are_set_added_and_removed(api: Api) -> None:
    for name in ("alice", "bob", "carol"):
        await api.as_user(name)
    admin = {"username": "admin", "project_role": "admin"}
    alice = {"username": "alice", "project_role": "manager"}
    bob = {"username": "bob", "project_role": "user"}
    project = await api.ok("projects/main/set_members", {"members": [admin, alice]})
    assert [(m["user"]["username"], m["project_role"]) for m in project["members"]] == [
        ("admin", "admin"),
        ("alice", "manager"),
    ]
    as_alice = Api(api.app, "token-of-alice")
    project = await as_alice.ok("projects/main/add_members", {"members": [bob]})
    assert [m["user"]["username"] for m in project["members"]] == ["admin", "alice", "bob"]
    promotion = await as_alice.post(
        "projects/main/add_members", {"members": [{"username": "bob", "project_role": "admin"}]}
    )
    assert promotion.status_code == 403
    as_bob = Api(api.app, "token-of-bob")
    assert (await as_bob.post("projects/main/remove_members", {"usernames": ["alice"]})).status_code == 403
    await as_bob.ok("projects/main/remove_members", {"usernames": ["bob"]})
    assert (await as_bob.post("projects/main/get")).status_code == 403
    last = await api.post("projects/main/remove_members", {"usernames": ["admin"]})
    assert "without an admin" in last.json()["detail"][0]["msg"]


async def test_a_public_project_can_be_seen_and_joined(api: Api) -> None:
    await api.ok("projects/main/update", {"is_public": True})
    alice = await api.as_user("alice")
    assert (await alice.ok("projects/main/get"))["is_public"] is True
    await alice.ok("projects/main/add_members", {"members": [{"username": "alice", "project_role": "user"}]})
    assert (await alice.post("projects/main/update", {"is_public": False})).status_code == 403


async def test_secrets_are_stored_encrypted_and_shown_by_name_only(api: Api) -> None:
    made = await api.ok("project/main/secrets/create_or_update", {"name": "tok", "value": "abc"})
    assert made["value"] == "abc"
    again = await api.ok("project/main/secrets/create_or_update", {"name": "tok", "value": "def"})
    assert again["id"] == made["id"]
    assert (await api.ok("project/main/secrets/list"))[0]["value"] is None
    assert (await api.ok("project/main/secrets/get", {"name": "tok"}))["value"] == "def"
    await api.ok("project/main/secrets/delete", {"secrets_names": ["tok"]})
    for path, body in (("get", {"name": "tok"}), ("delete", {"secrets_names": ["tok"]})):
        gone = await api.post(f"project/main/secrets/{path}", body)
        assert (gone.status_code, gone.json()["detail"][0]["code"]) == (400, "resource_not_exists")


async def test_events_tell_who_did_what(api: Api) -> None:
    await api.ok("project/main/secrets/create_or_update", {"name": "tok", "value": "abc"})
    project_id = (await api.ok("projects/main/get"))["project_id"]
    events = await api.ok("events/list", {"within_projects": [project_id]})
    assert (events[0]["actor_user"], events[0]["targets"][0]["type"]) == ("admin", "secret")
    assert events[0]["targets"][0]["project_name"] == "main"
    alice = await api.as_user("alice")
    assert await alice.ok("events/list", {"within_projects": [project_id]}) == []
    older = await api.ok("events/list", {"prev_recorded_at": events[0]["recorded_at"], "prev_id": events[0]["id"]})
    assert events[0]["id"] not in {event["id"] for event in older}


async def test_repos_and_their_credentials(api: Api) -> None:
    await api.ok("project/main/repos/init", {"repo_id": "none", "repo_info": {"repo_type": "virtual"}})
    creds = {"clone_url": "https://example.org/r.git", "oauth_token": "secret"}
    info = {"repo_type": "remote", "repo_name": "r"}
    await api.ok("project/main/repos/init", {"repo_id": "r", "repo_info": info, "repo_creds": creds})
    repo = await api.ok("project/main/repos/get", {"repo_id": "r", "include_creds": True})
    assert repo["repo_creds"]["oauth_token"] == "secret"
    assert len(await api.ok("project/main/repos/list")) == 2
    unknown = await api.post("project/main/repos/get", {"repo_id": "x", "include_creds": False})
    assert unknown.json()["detail"][0]["code"] == "resource_not_exists"
    await api.ok("project/main/repos/delete", {"repos_ids": ["r"]})


async def test_uploads_are_found_by_their_hash(api: Api) -> None:
    blob_hash = uuid.uuid4().hex * 2
    upload = {"files": {"file": (blob_hash, b"tar")}}
    first = await api.ok("files/upload_archive", **upload)
    again = await api.ok("files/upload_archive", **upload)
    assert first == again == await api.ok("files/get_archive_by_hash", {"hash": blob_hash})
    await api.ok(
        "project/main/repos/init", {"repo_id": "r", "repo_info": {"repo_type": "remote", "repo_name": "r"}}
    )
    assert await api.ok("project/main/repos/upload_code?repo_id=r", **upload) is None
    unknown = await api.post("project/main/repos/upload_code?repo_id=x", **upload)
    assert unknown.json()["detail"][0]["code"] == "repo_does_not_exist"


async def test_an_upload_that_is_too_large_is_refused(sqlite_api: Api) -> None:
    answer = await sqlite_api.post("files/upload_archive", files={"file": ("0" * 64, b"x" * 3_000_000)})
    assert (answer.status_code, answer.json()["detail"][0]["code"]) == (400, "error")
    assert "2097152 bytes" in answer.json()["detail"][0]["msg"]


async def test_users_and_projects_are_listed_page_by_page(api: Api) -> None:
    """Also where several were made at the same moment."""
    for number in range(4):
        await api.as_user(f"user{number}")
        await api.ok("projects/create", {"project_name": f"team{number}"})
    same = datetime(2026, 1, 1, tzinfo=timezone.utc)
    async with api.context.database.transaction() as session:
        await session.execute(update(UserRow).where(UserRow.name.like("user%")).values(created_at=same))
        await session.execute(update(ProjectRow).where(ProjectRow.name.like("team%")).values(created_at=same))
    users = await pages(api, "users/list", "users", "id")
    assert sorted(user["username"] for user in users) == ["user0", "user1", "user2", "user3"]
    projects = await pages(api, "projects/list", "projects", "project_id")
    assert sorted(project["project_name"] for project in projects) == ["team0", "team1", "team2", "team3"]


async def pages(api: Api, path: str, key: str, id_key: str) -> list[dict[str, Any]]:
    """All that match, three at a time."""
    pattern = {"users": "ER", "projects": "TEAM"}[key]
    found: list[dict[str, Any]] = []
    position: dict[str, Any] = {}
    while True:
        body = {"name_pattern": pattern, "return_total_count": True, "limit": 3, **position}
        page = await api.ok(path, body)
        assert page["total_count"] == 4
        found += page[key]
        if len(page[key]) < 3:
            return found
        position = {"prev_created_at": found[-1]["created_at"], "prev_id": found[-1][id_key]}

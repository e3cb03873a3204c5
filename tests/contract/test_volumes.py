"""Volumes: submitted, listed, paged and deleted by the operations; what becomes of them is the orchestrator's."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import insert, update
from tests.fixtures.api import Api

from dstack.server.db.tables import VolumeAttachmentRow, VolumeRow

AWS = {"type": "volume", "backend": "aws", "region": "eu-west-1", "size": "100GB"}


async def create(api: Api, project: str = "main", **fields: Any) -> Any:
    return await api.ok(f"project/{project}/volumes/create", {"configuration": {**AWS, **fields}})


async def test_a_volume_is_submitted_and_found(api: Api) -> None:
    made = await create(api, name="v1")
    assert (made["status"], made["user"], made["external"], made["attachments"]) == (
        "submitted",
        "admin",
        False,
        [],
    )
    assert made["configuration"]["size"] == 100.0
    found = await api.ok("project/main/volumes/get", {"name": "v1"})
    assert found == made
    assert await api.ok("project/main/volumes/list") == [made]
    again = await api.post("project/main/volumes/create", {"configuration": {**AWS, "name": "v1"}})
    assert again.json()["detail"][0]["code"] == "resource_exists"
    events = await api.ok("events/list", {"target_volumes": [made["id"]]})
    assert [event["message"] for event in events] == ["Volume created"]


async def test_a_name_is_found_for_one_that_has_none(sqlite_api: Api) -> None:
    made = await create(sqlite_api)
    assert made["name"] == made["configuration"]["name"] != ""


async def test_a_disk_that_is_there_is_external(sqlite_api: Api) -> None:
    made = await create(sqlite_api, name="v1", size=None, volume_id="vol-1")
    assert made["external"] is True


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": None}, "needs a `size`"),
        ({"volume_id": "vol-1"}, "leave out `size`"),
        ({"name": "No Good"}, "volume"),
        ({"backend": "kubernetes", "size": None}, "claim_name"),
    ],
)
async def test_what_no_backend_could_make_is_refused(sqlite_api: Api, fields: dict[str, Any], words: str) -> None:
    answer = await sqlite_api.post("project/main/volumes/create", {"configuration": {**AWS, **fields}})
    assert (answer.status_code, words in answer.text) == (400, True), answer.text


async def test_pages_over_the_projects_of_the_caller(api: Api) -> None:
    names = [(await create(api, name=f"v{number}"))["name"] for number in range(3)]
    await api.ok("projects/create", {"project_name": "other"})
    elsewhere = await create(api, "other", name="ww")
    first = await api.ok("volumes/list", {"limit": 2})
    assert [one["name"] for one in first] == ["ww", "v2"]
    last = first[-1]
    rest = await api.ok("volumes/list", {"prev_created_at": last["created_at"], "prev_id": last["id"]})
    assert [one["name"] for one in rest] == ["v1", "v0"]
    assert [one["name"] for one in await api.ok("volumes/list", {"ascending": True})] == [*names, "ww"]
    assert await api.ok("volumes/list", {"project_name": "other"}) == [elsewhere]
    assert await api.ok("volumes/list", {"only_active": True}) == []
    member = await api.as_user("alice", role="user")
    assert {one["project_name"] for one in await member.ok("volumes/list", {})} == {"main"}
    stranger = await api.as_user("bob")
    assert await stranger.ok("volumes/list", {}) == []


async def test_what_is_attached_is_not_deleted(api: Api) -> None:
    made = await create(api, name="v1")
    spec = {"configuration": {"type": "fleet", "name": "f1", "nodes": 1}, "profile": {}}
    fleet = await api.ok("project/main/fleets/apply", {"plan": {"spec": spec}, "force": False})
    async with api.context.database.transaction() as session:
        values = {"volume_id": uuid.UUID(made["id"]), "instance_id": uuid.UUID(fleet["instances"][0]["id"])}
        await session.execute(insert(VolumeAttachmentRow).values(values))
    found = await api.ok("project/main/volumes/get", {"name": "v1"})
    assert found["attachments"][0]["instance"]["fleet_name"] == "f1"
    answer = await api.post("project/main/volumes/delete", {"names": ["v1"]})
    assert (answer.status_code, "is attached to f1-0" in answer.text) == (400, True)


async def test_deletion_is_wanted_once_and_unknown_names_are_no_error(api: Api) -> None:
    made = await create(api, name="v1")
    for _ in range(2):
        assert await api.ok("project/main/volumes/delete", {"names": ["v1", "nope"]}) is None
    messages = [one["message"] for one in await api.ok("events/list", {"target_volumes": [made["id"]]})]
    assert messages == ["Volume deletion requested", "Volume created"]
    async with api.context.database.transaction() as session:
        values = {"deleted": True, "status": "deleted"}
        await session.execute(update(VolumeRow).values(values))
    gone = await api.post("project/main/volumes/get", {"name": "v1"})
    assert gone.json()["detail"][0]["code"] == "resource_not_exists"
    listed = await api.ok("volumes/list", {})
    assert [(one["deleted"], one["status"]) for one in listed] == [(True, "active")]
    assert (await create(api, name="v1"))["id"] != made["id"]


async def test_a_run_names_volumes_that_exist(sqlite_api: Api) -> None:
    await create(sqlite_api, name="data-0")
    task = {"type": "task", "name": "tt", "commands": ["true"], "volumes": ["data-${{ dstack.node_rank }}:/d"]}
    plan = await sqlite_api.ok("project/main/runs/get_plan", {"run_spec": {"configuration": task}})
    assert plan["job_plans"][0]["job_spec"]["volumes"] == [{"name": ["data-0"], "path": "/d"}]
    task["volumes"] = ["nope:/d"]
    answer = await sqlite_api.post("project/main/runs/get_plan", {"run_spec": {"configuration": task}})
    assert answer.json()["detail"][0]["code"] == "resource_not_exists"

"""Exports and imports: what a project shares is seen and planned with by others, and by nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fixtures.api import Api


async def fleet(api: Api, name: str, project: str = "main", **fields: Any) -> Any:
    configuration = {"type": "fleet", "name": name, "nodes": "0..2", **fields}
    body = {"plan": {"spec": {"configuration": configuration, "profile": {}}}, "force": False}
    return await api.ok(f"project/{project}/fleets/apply", body)


async def team(api: Api) -> Api:
    """Somebody who is only in project `team`, as its admin."""
    await api.ok("projects/create", {"project_name": "team"})
    return await api.as_user("tina", role="admin", project="team")


async def share(api: Api, **fields: Any) -> Any:
    body = {"name": "gpus", "exported_fleets": ["f1"], "importer_projects": ["team"], **fields}
    return await api.ok("project/main/exports/create", body)


async def test_an_export_is_created_listed_changed_and_deleted(api: Api) -> None:
    made, other = await fleet(api, "f1"), await fleet(api, "f2")
    await team(api)
    export = await share(api)
    assert export == {
        "id": export["id"],
        "name": "gpus",
        "is_global": False,
        "imports": [{"project_name": "team"}],
        "exported_fleets": [{"id": made["id"], "name": "f1"}],
        "exported_gateways": [],
    }
    assert await api.ok("project/main/exports/list") == {"exports": [export], "warnings": []}
    older = await api.ok("project/main/exports/list", headers={"X-API-VERSION": "0.21.9"})
    assert older == [export]
    changes = {
        "name": "gpus",
        "set_global": True,
        "add_exported_fleets": ["f2", "f1"],
        "remove_exported_fleets": ["f1", "nope"],
        "remove_importer_projects": ["team"],
    }
    changed = await api.ok("project/main/exports/update", changes)
    assert (changed["is_global"], changed["imports"]) == (True, [])
    assert changed["exported_fleets"] == [{"id": other["id"], "name": "f2"}]
    assert await api.ok("project/main/exports/delete", {"name": "gpus"}) is None
    assert (await api.ok("project/main/exports/list"))["exports"] == []


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("exports/create", {"name": "gpus"}, "resource_exists"),
        ("exports/create", {"name": "No Good"}, "error"),
        ("exports/create", {"name": "new", "exported_fleets": ["nope"]}, "resource_not_exists"),
        ("exports/create", {"name": "new", "exported_gateways": ["nope"]}, "resource_not_exists"),
        ("exports/create", {"name": "new", "importer_projects": ["nope"]}, "resource_not_exists"),
        ("exports/create", {"name": "new", "importer_projects": ["main"]}, "error"),
        ("exports/update", {"name": "nope"}, "resource_not_exists"),
        ("exports/update", {"name": "gpus", "set_global": True, "unset_global": True}, "error"),
        ("exports/delete", {"name": "nope"}, "resource_not_exists"),
        ("imports/delete", {"export_name": "nope", "export_project_name": "main"}, "resource_not_exists"),
    ],
)
async def test_what_cannot_be_shared(sqlite_api: Api, path: str, body: dict[str, Any], code: str) -> None:
    await fleet(sqlite_api, "f1")
    await team(sqlite_api)
    await share(sqlite_api)
    answer = await sqlite_api.post(f"project/main/{path}", body)
    assert (answer.status_code, answer.json()["detail"][0]["code"]) == (400, code), answer.text


async def test_an_imported_fleet_is_seen_where_it_is_asked_for(api: Api) -> None:
    await fleet(api, "f1")
    tina = await team(api)
    refused = await tina.post("project/main/fleets/get", {"name": "f1"})
    assert refused.status_code == 403
    await share(api)
    assert await tina.ok("project/team/fleets/list") == []
    listed = await tina.ok("project/team/fleets/list", {"include_imported": True})
    assert [(one["project_name"], one["name"]) for one in listed] == [("main", "f1")]
    assert await tina.ok("fleets/list", {}) == []
    assert [one["name"] for one in await tina.ok("fleets/list", {"include_imported": True})] == ["f1"]
    assert (await tina.ok("project/main/fleets/get", {"name": "f1"}))["name"] == "f1"
    assert (await tina.post("project/main/fleets/delete", {"names": ["f1"]})).status_code == 403
    imports = (await tina.ok("project/team/imports/list"))["imports"]
    assert [(one["export"]["project_name"], one["export"]["name"]) for one in imports] == [("main", "gpus")]
    assert [one["name"] for one in imports[0]["export"]["exported_fleets"]] == ["f1"]
    gone = {"export_name": "gpus", "export_project_name": "main"}
    assert await tina.ok("project/team/imports/delete", gone) is None
    assert await tina.ok("project/team/fleets/list", {"include_imported": True}) == []
    assert (await api.ok("project/main/exports/list"))["exports"][0]["imports"] == []


async def test_instances_of_imported_fleets_are_listed_when_asked_for(sqlite_api: Api) -> None:
    await fleet(sqlite_api, "f1", nodes=1)
    tina = await team(sqlite_api)
    await share(sqlite_api)
    assert await tina.ok("instances/list", {}) == []
    listed = await tina.ok("instances/list", {"include_imported": True, "project_names": ["team"]})
    assert [(one["project_name"], one["name"]) for one in listed] == [("main", "f1-0")]


async def test_what_is_shared_with_all_projects(sqlite_api: Api) -> None:
    await fleet(sqlite_api, "f1")
    tina = await team(sqlite_api)
    await share(sqlite_api, is_global=True, importer_projects=[])
    assert len((await tina.ok("project/team/imports/list"))["imports"]) == 1
    assert len(await tina.ok("project/team/fleets/list", {"include_imported": True})) == 1
    assert (await sqlite_api.ok("project/main/imports/list"))["imports"] == []
    gone = {"export_name": "gpus", "export_project_name": "main"}
    assert (await tina.post("project/team/imports/delete", gone)).status_code == 400


async def test_a_member_may_look_but_not_share(sqlite_api: Api) -> None:
    alice = await sqlite_api.as_user("alice", role="user")
    assert (await alice.ok("project/main/exports/list"))["exports"] == []
    assert (await alice.post("project/main/exports/create", {"name": "gpus"})).status_code == 403

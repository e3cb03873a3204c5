"""Gateways by their rows: no backend of this server makes any, so that the tests do."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import select
from tests.fixtures.api import Api
from tests.fixtures.rows import EPOCH

from dstack.core.canonical import dump_json
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.server.db.tables import GatewayReplicaRow, GatewayRow, ProjectRow

CONFIGURATION = {"type": "gateway", "backend": "aws", "region": "eu-west-1", "domain": "example.com"}


async def add(api: Api, name: str, project: str = "main", *, replicas: int = 1) -> str:
    """A gateway that runs."""
    id = uuid.uuid4()
    configuration = GatewayConfiguration.model_validate({**CONFIGURATION, "name": name})
    state = {"created_at": EPOCH, "last_processed_at": EPOCH, "status": "running"}
    async with api.context.database.transaction() as session:
        project_id = await session.scalar(select(ProjectRow.id).where(ProjectRow.name == project))
        assert project_id is not None
        session.add(
            GatewayRow(
                id=id,
                project_id=project_id,
                name=name,
                configuration=dump_json(configuration),
                wildcard_domain="*.example.com",
                **state,
            )
        )
        await session.flush()
        for num in range(replicas):
            place = {"backend": "aws", "region": "eu-west-1", "hostname": f"203.0.113.{num}"}
            session.add(GatewayReplicaRow(gateway_id=id, replica_num=num, **place, **state))
    return str(id)


async def test_gateways_are_listed_and_found(api: Api) -> None:
    id = await add(api, "g1", replicas=2)
    found = await api.ok("project/main/gateways/get", {"name": "g1"})
    assert (found["id"], found["default"], found["ip_address"]) == (id, False, "203.0.113.0, 203.0.113.1")
    assert [replica["hostname"] for replica in found["replicas"]] == ["203.0.113.0", "203.0.113.1"]
    assert await api.ok("project/main/gateways/list") == [found]


async def test_the_default_one_and_its_domain(api: Api) -> None:
    await add(api, "g1")
    await add(api, "g2")
    for name in ("g1", "g2"):
        assert await api.ok("project/main/gateways/set_default", {"name": name}) is None
    listed = await api.ok("project/main/gateways/list")
    assert {one["name"]: one["default"] for one in listed} == {"g1": False, "g2": True}
    changed = await api.ok(
        "project/main/gateways/set_wildcard_domain", {"name": "g2", "wildcard_domain": "*.a.org"}
    )
    assert (changed["wildcard_domain"], changed["configuration"]["domain"]) == ("*.a.org", "a.org")
    answer = await api.post("project/main/gateways/set_wildcard_domain", {"name": "g2", "wildcard_domain": "*."})
    assert answer.status_code == 400


async def applied(api: Api, force: bool = False, **changes: Any) -> Any:
    spec = {"configuration": {**CONFIGURATION, "name": "g1", **changes}}
    plan = await api.ok("project/main/gateways/get_plan", {"spec": spec})
    body = {"plan": {"spec": spec, "current_resource": plan["current_resource"]}, "force": force}
    return plan["action"], await api.post("project/main/gateways/apply", body)


async def test_what_changes_in_place(api: Api) -> None:
    await add(api, "g1")
    action, answer = await applied(api, domain="b.org", default=True)
    assert (action, answer.status_code) == ("update", 200)
    assert (answer.json()["wildcard_domain"], answer.json()["default"]) == ("*.b.org", True)
    action, answer = await applied(api, domain="b.org", default=False)
    assert (action, answer.json()["default"]) == ("update", False)
    action, answer = await applied(api, region="us-east-1")
    assert (action, answer.status_code, "region" in answer.text) == ("create", 400, True)


async def test_what_was_planned_against_something_else(sqlite_api: Api) -> None:
    await add(sqlite_api, "g1")
    spec = {"configuration": {**CONFIGURATION, "name": "g1", "domain": "b.org"}}
    body = {"plan": {"spec": spec, "current_resource": None}, "force": False}
    assert (await sqlite_api.post("project/main/gateways/apply", body)).status_code == 400
    assert (await sqlite_api.post("project/main/gateways/apply", {**body, "force": True})).status_code == 200


@pytest.mark.parametrize(("replicas", "left"), [(0, []), (1, ["g1"])])
async def test_deletion_is_wanted_and_done_when_its_machines_are_gone(
    api: Api, replicas: int, left: list[str]
) -> None:
    id = await add(api, "g1", replicas=replicas)
    await api.ok("project/main/gateways/set_default", {"name": "g1"})
    for _ in range(2):
        assert await api.ok("project/main/gateways/delete", {"names": ["g1", "nope"]}) is None
    listed = await api.ok("project/main/gateways/list")
    assert [one["name"] for one in listed if not one["default"]] == left
    messages = [one["message"] for one in await api.ok("events/list", {"target_gateways": [id]})]
    assert messages.count("Gateway deletion requested") == 1


async def test_one_that_another_project_shares(api: Api) -> None:
    await add(api, "g1")
    await api.ok("projects/create", {"project_name": "team"})
    tina = await api.as_user("tina", role="admin", project="team")
    assert (await tina.post("project/main/gateways/get", {"name": "g1"})).status_code == 403
    body = {"name": "web", "exported_gateways": ["g1"], "importer_projects": ["team"]}
    assert [one["name"] for one in (await api.ok("project/main/exports/create", body))["exported_gateways"]] == [
        "g1"
    ]
    assert (await tina.ok("project/main/gateways/get", {"name": "g1"}))["project_name"] == "main"
    assert await tina.ok("project/team/gateways/list") == []
    missing = await tina.post("project/team/gateways/set_default", {"name": "g1"})
    assert missing.json()["detail"][0]["code"] == "resource_not_exists"
    await tina.ok("project/team/gateways/set_default", {"name": "g1", "gateway_project": "main"})
    listed = await tina.ok("project/team/gateways/list", {"include_imported": True})
    assert [(one["name"], one["default"]) for one in listed] == [("g1", True)]
    assert (await api.ok("project/main/gateways/get", {"name": "g1"}))["default"] is False


async def test_a_name_that_is_taken(sqlite_api: Api) -> None:
    await add(sqlite_api, "g1")
    answer = await sqlite_api.post(
        "project/main/gateways/create", {"configuration": {**CONFIGURATION, "name": "g1"}}
    )
    assert answer.json()["detail"][0]["code"] == "resource_exists"

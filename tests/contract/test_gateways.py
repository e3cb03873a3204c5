"""Gateways: what is asked for as rows, and which of them services are published by."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import select, update
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


SSH = {"user": "root", "ssh_key": {"public": "", "private": "PRIVATE"}, "hosts": ["203.0.113.7"]}
ON_HOST = {"type": "gateway", "name": "g1", "backend": "ssh", "domain": "*.example.com", "ssh_config": SSH}


async def test_one_on_a_host_is_submitted_and_its_key_never_shown(api: Api) -> None:
    made = await api.ok("project/main/gateways/create", {"configuration": ON_HOST})
    assert (made["status"], made["backend"], made["hostname"]) == ("submitted", "remote", "203.0.113.7")
    assert (made["default"], made["wildcard_domain"]) == (True, "*.example.com")
    assert [(one["hostname"], one["status"]) for one in made["replicas"]] == [("203.0.113.7", "submitted")]
    assert "PRIVATE" not in str(await api.ok("project/main/gateways/list"))
    plan = await api.ok("project/main/gateways/get_plan", {"spec": {"configuration": ON_HOST}})
    assert (plan["action"], "PRIVATE" in str(plan["effective_spec"])) == ("update", False)
    async with api.context.database.session() as session:
        row = (await session.scalars(select(GatewayReplicaRow))).one()
    assert "PRIVATE" in api.context.encryption.decrypt(
        row.ssh_target or "", f"gateway_replicas.ssh_target:{row.id}"
    )
    again = await api.post("project/main/gateways/create", {"configuration": {**ON_HOST, "name": "g2"}})
    assert "carries gateway 'g1' already" in again.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ssh_config": None}, "belong together"),
        ({"replicas": 2}, "leave out 'replicas'"),
        ({"ssh_config": {**SSH, "hosts": []}}, "name at least one host"),
        ({"ssh_config": {**SSH, "ssh_key": None}}, "no private key"),
        ({"ssh_config": {**SSH, "hosts": ["a", "b"]}}, "certificate: null"),
        ({"certificate": {"type": "acm", "arn": "x"}}, "need a load balancer"),
        ({"load_balancer": {"type": "alb"}}, "there is no `load_balancer`"),
    ],
)
async def test_what_cannot_be_made(sqlite_api: Api, changes: dict[str, Any], told: str) -> None:
    answer = await sqlite_api.post("project/main/gateways/create", {"configuration": {**ON_HOST, **changes}})
    assert (answer.status_code in (400, 422), told in answer.text) == (True, True), answer.text


async def publish(api: Api, **changes: Any) -> Any:
    configuration = {"type": "service", "commands": ["serve"], "port": 80, **changes}
    spec = {"run_name": "llm", "configuration": configuration}
    return await api.post("project/main/runs/apply", {"plan": {"run_spec": spec}, "force": False})


@pytest.mark.parametrize(
    ("domain", "certificate", "changes", "url", "base_url"),
    [
        ("*.example.com", None, {}, "http://llm.example.com", "http://llm.example.com/v1"),
        ("a.b", {"type": "lets-encrypt"}, {"https": "auto"}, "https://llm.a.b", "https://llm.a.b/v1"),
        ("a.b", {"type": "lets-encrypt"}, {"https": False}, "http://llm.a.b", "http://llm.a.b/v1"),
        ("*.${{ run.project_name }}.b", None, {}, "http://llm.main.b", "http://llm.main.b/v1"),
        ("a.b", None, {"gateway": False}, "/proxy/services/main/llm/", "/proxy/services/main/llm/v1"),
    ],
)
async def test_the_address_of_a_service(
    sqlite_api: Api, domain: str, certificate: Any, changes: dict[str, Any], url: str, base_url: str
) -> None:
    await running(sqlite_api, domain=domain, certificate=certificate)
    run = (await publish(sqlite_api, model="m", **changes)).json()
    assert (run["service"]["url"], run["service"]["model"]["base_url"]) == (url, base_url)


async def running(api: Api, **changes: Any) -> None:
    await api.ok("project/main/gateways/create", {"configuration": {**ON_HOST, **changes}})
    async with api.context.database.transaction() as session:
        await session.execute(update(GatewayRow).values(status="running"))


@pytest.mark.parametrize(
    ("changes", "service", "told"),
    [
        ({"domain": None}, {}, "has no domain"),
        ({"certificate": None}, {"https": True}, "has no certificate"),
        ({"default": False}, {"gateway": True}, "no default gateway"),
        ({}, {"gateway": "other"}, "'other' does not exist"),
        ({"domain": "*.${{ run.x }}.b"}, {}, "cannot be filled in"),
    ],
)
async def test_services_that_cannot_be_published(
    sqlite_api: Api, changes: dict[str, Any], service: dict[str, Any], told: str
) -> None:
    await running(sqlite_api, **changes)
    answer = await publish(sqlite_api, **service)
    assert (answer.status_code, told in answer.text) == (400, True), answer.text


async def test_a_gateway_that_does_not_run_yet_publishes_nothing(sqlite_api: Api) -> None:
    await sqlite_api.ok("project/main/gateways/create", {"configuration": ON_HOST})
    assert "does not run: it is submitted" in (await publish(sqlite_api)).text

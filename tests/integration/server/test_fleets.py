"""Fleets and instances over the REST API: what is answered and what is put on record for the orchestrator."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from tests.fixtures.api import Api
from tests.fixtures.rows import fleet_row, instance_row, job_row, run_row

from dstack.server.access import DefaultPermissions
from dstack.server.db.tables import EventRow, FleetRow, InstanceRow, ProjectRow, UserRow

FLEETS = "project/main/fleets"


def spec(name: str | None = "f1", **settings: Any) -> dict[str, Any]:
    configuration = {"type": "fleet", "name": name, "nodes": "0..2", **settings}
    return {"configuration": configuration, "profile": {"name": "default"}}


async def apply(api: Api, wanted: dict[str, Any], current: Any = None, *, force: bool = False) -> Any:
    return await api.post(
        f"{FLEETS}/apply", {"plan": {"spec": wanted, "current_resource": current}, "force": force}
    )


async def applied(api: Api, wanted: dict[str, Any], current: Any = None) -> Any:
    response = await apply(api, wanted, current)
    assert response.status_code == 200, response.text
    return response.json()


def problem(response: Any) -> tuple[str, str]:
    assert response.status_code == 400, response.text
    detail = response.json()["detail"][0]
    return detail["code"], detail["msg"]


async def add(api: Api, *rows: Any) -> None:
    async with api.context.database.transaction() as session:
        session.add_all(rows)


async def main_of(api: Api) -> tuple[ProjectRow, UserRow]:
    async with api.context.database.session() as session:
        project = (await session.scalars(select(ProjectRow))).one()
        return project, (await session.scalars(select(UserRow))).one()


async def test_a_fleet_is_planned_made_and_listed(api: Api) -> None:
    plan = await api.ok(f"{FLEETS}/get_plan", {"spec": spec()})
    assert (plan["action"], plan["current_resource"], plan["total_offers"]) == ("create", None, 0)
    made = await applied(api, spec())
    assert (made["status"], made["instances"]) == ("active", [])
    assert await api.ok(f"{FLEETS}/list", {"include_imported": True}) == [made]
    assert await api.ok(f"{FLEETS}/list") == [made]
    assert await api.ok(f"{FLEETS}/get", {"name": "f1"}) == made
    assert await api.ok(f"{FLEETS}/get", {"id": made["id"]}) == made
    assert await api.ok("fleets/list", {}) == [made]
    async with api.context.database.session() as session:
        events = list(await session.scalars(select(EventRow.message)))
    assert "Fleet created" in events


async def test_a_fleet_starts_with_its_target_of_instances(api: Api) -> None:
    woken: list[str] = []
    api.context.database.wakeups.listen(woken.append)
    made = await applied(api, spec(nodes={"min": 1, "target": 2, "max": 3}, idle_duration="1h"))
    assert [(one["name"], one["status"]) for one in made["instances"]] == [
        ("f1-0", "pending"),
        ("f1-1", "pending"),
    ]
    assert {f"fleet:{made['id']}", *(f"instance:{one['id']}" for one in made["instances"])} < set(woken)
    async with api.context.database.session() as session:
        rows = list(await session.scalars(select(InstanceRow)))
    assert {row.idle_duration for row in rows} == {3600}
    shown = await api.ok("instances/list", {"fleet_ids": [made["id"]], "limit": 1, "ascending": True})
    assert len(shown) == 1
    assert await api.ok("project/main/instances/get", {"id": shown[0]["id"]}) == shown[0]


async def test_a_fleet_without_a_name_gets_one(sqlite_api: Api) -> None:
    made = await applied(sqlite_api, spec(None))
    assert made["name"] == made["spec"]["configuration"]["name"] is not None


async def test_some_fields_are_changed_in_place_and_others_are_not(api: Api) -> None:
    made = await applied(api, spec())
    wider = spec(nodes="0..5", regions=["eu"])
    plan = await api.ok(f"{FLEETS}/get_plan", {"spec": wider})
    assert (plan["action"], plan["current_resource"]) == ("update", made)
    changed = await applied(api, wider, made)
    assert (changed["id"], changed["spec"]["configuration"]["regions"]) == (made["id"], ["eu"])
    cluster = spec(nodes="0..5", regions=["eu"], placement="cluster")
    plan = await api.ok(f"{FLEETS}/get_plan", {"spec": cluster})
    assert (plan["action"], plan["current_resource"]) == ("create", changed)
    code, text = problem(await apply(api, cluster, changed))
    assert (code, "configuration.placement" in text) == ("error", True)
    same = await api.ok(f"{FLEETS}/get_plan", {"spec": wider})
    assert same["current_resource"]["spec"] == same["effective_spec"]


async def test_what_changed_since_the_plan_is_refused_unless_forced(api: Api) -> None:
    made = await applied(api, spec())
    assert "changed since the plan" in problem(await apply(api, spec(nodes="0..3")))[1]
    await applied(api, spec(nodes="0..3"), made)
    assert "changed since the plan" in problem(await apply(api, spec(nodes="0..4"), made))[1]
    assert (await apply(api, spec(nodes="0..4"), made, force=True)).status_code == 200


async def test_what_cannot_be_a_fleet_is_explained(sqlite_api: Api) -> None:
    hosts = {"configuration": {"type": "fleet", "name": "f1", "ssh_config": {"hosts": ["h"]}}, "profile": {}}
    assert "Host h has no `user`" in problem(await apply(sqlite_api, hosts))[1]
    assert "`nodes`" in problem(await apply(sqlite_api, spec(nodes=None)))[1]
    assert "fleet name" in problem(await apply(sqlite_api, spec("F 1")))[1]
    missing = await sqlite_api.post(f"{FLEETS}/get", {"name": "none"})
    assert problem(missing) == ("resource_not_exists", "Fleet 'none' does not exist")
    assert problem(await sqlite_api.post(f"{FLEETS}/get", {}))[0] == "error"


async def test_deleting_is_asked_for_and_refused_while_in_use(api: Api) -> None:
    project, user = await main_of(api)
    fleet, run = fleet_row(project), run_row(project, user, name="busy")
    instance = instance_row(fleet, status="busy", busy_blocks=1)
    job = job_row(run, instance_id=instance.id, fleet_id=fleet.id, status="running")
    await add(api, fleet, instance, run, job)
    assert "in use by run busy" in problem(await api.post(f"{FLEETS}/delete", {"names": ["f1"]}))[1]
    one = {"name": "f1", "instance_nums": [0]}
    assert "in use by run busy" in problem(await api.post(f"{FLEETS}/delete_instances", one))[1]
    async with api.context.database.transaction() as session:
        for row in (await session.get_one(type(run), run.id), await session.get_one(type(job), job.id)):
            row.status = "done"
    assert await api.ok(f"{FLEETS}/delete_instances", one) is None
    assert await api.ok(f"{FLEETS}/delete", {"names": ["f1", "unknown"]}) is None
    async with api.context.database.session() as session:
        assert (await session.get_one(InstanceRow, instance.id)).terminate_requested == "terminated_by_user"
        assert (await session.get_one(FleetRow, fleet.id)).deleted_at is not None
    assert "being deleted" in problem(await apply(api, spec(), force=True))[1]


async def test_unknown_instances_are_told(sqlite_api: Api) -> None:
    project, _ = await main_of(sqlite_api)
    fleet = fleet_row(project)
    await add(sqlite_api, fleet, instance_row(fleet))
    path = f"{FLEETS}/delete_instances"
    assert problem(await sqlite_api.post(path, {"name": "none", "instance_nums": [0]}))[0] == "resource_not_exists"
    assert "no instance 7" in problem(await sqlite_api.post(path, {"name": "f1", "instance_nums": [0, 7]}))[1]
    checks = "project/main/instances/get_instance_health_checks"
    asked = {"fleet_name": "f1", "instance_num": 0}
    assert await sqlite_api.ok(checks, asked) == {"health_checks": []}
    assert problem(await sqlite_api.post(checks, {**asked, "instance_num": 1}))[0] == "resource_not_exists"


async def test_pages_of_fleets_and_what_others_see(api: Api) -> None:
    for name in ("f1", "f2", "f3"):
        await applied(api, spec(name))
    first = await api.ok("fleets/list", {"limit": 2})
    assert [fleet["name"] for fleet in first] == ["f3", "f2"]
    last = {"prev_created_at": first[-1]["created_at"], "prev_id": first[-1]["id"]}
    assert [fleet["name"] for fleet in await api.ok("fleets/list", last)] == ["f1"]
    stranger = await api.as_user("stranger")
    assert await stranger.ok("fleets/list", {}) == []
    assert await stranger.ok("instances/list", {}) == []
    assert (await stranger.post(f"{FLEETS}/list")).status_code == 403
    member = await api.as_user("member", role="user")
    assert len(await member.ok("fleets/list", {"project_name": "main"})) == 3
    assert (await applied(member, spec("f4")))["name"] == "f4"


def ssh_spec(name: str, *hosts: Any) -> dict[str, Any]:
    key = {"public": "ssh-ed25519 AAAA", "private": "PRIVATE"}
    jump = {"hostname": "head", "user": "admin", "identity_file": "id", "ssh_key": key}
    ssh_config = {"user": "ubuntu", "ssh_key": key, "proxy_jump": jump, "hosts": list(hosts)}
    configuration = {"type": "fleet", "name": name, "ssh_config": ssh_config}
    return {"configuration": configuration, "profile": {"name": "default"}}


async def test_the_hosts_of_a_fleet_are_instances_and_no_answer_has_a_key(api: Api) -> None:
    own = {"hostname": "10.0.0.2", "ssh_key": {"public": "", "private": "PRIVATE"}}
    wanted = ssh_spec("onprem", "10.0.0.1", own)
    plan = await api.ok(f"{FLEETS}/get_plan", {"spec": wanted})
    made = await applied(api, wanted)
    assert [(one["name"], one["hostname"], one["status"]) for one in made["instances"]] == [
        ("onprem-0", "10.0.0.1", "pending"),
        ("onprem-1", "10.0.0.2", "pending"),
    ]
    shown = [made, await api.ok(f"{FLEETS}/list"), await api.ok("instances/list", {})]
    assert "PRIVATE" not in str(shown)
    assert plan["action"] == "create"
    async with api.context.database.session() as session:
        specs = list(await session.scalars(select(FleetRow.spec)))
    assert "PRIVATE" not in str(specs)


async def test_a_host_is_in_one_fleet_only(sqlite_api: Api) -> None:
    await applied(sqlite_api, ssh_spec("first", "10.0.0.1"))
    told = problem(await apply(sqlite_api, ssh_spec("second", "10.0.0.2", "10.0.0.1")))[1]
    assert told == (
        "Host 10.0.0.1 belongs to fleet 'first' of project 'main' already; a host can be in one fleet only"
    )
    assert [one["name"] for one in await sqlite_api.ok(f"{FLEETS}/list")] == ["first"]


@pytest.mark.parametrize(("role", "status"), [("user", 403), ("manager", 403), ("admin", 200)])
async def test_hosts_may_be_left_to_the_admins_of_the_project(sqlite_api: Api, role: str, status: int) -> None:
    sqlite_api.context.permissions = DefaultPermissions(allow_non_admins_manage_ssh_fleets=False)
    member = await sqlite_api.as_user("ann", role=role)
    assert (await apply(member, spec("cloud"))).status_code == 200
    assert (await apply(member, ssh_spec("onprem", "10.0.0.1"))).status_code == status


async def test_hosts_are_for_all_members_unless_the_server_says_otherwise(sqlite_api: Api) -> None:
    member = await sqlite_api.as_user("ann", role="user")
    assert (await apply(member, ssh_spec("onprem", "10.0.0.1"))).status_code == 200

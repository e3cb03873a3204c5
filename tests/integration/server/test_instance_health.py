"""Health reports of instances: told by the API, and kept for a while."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import select
from tests.fixtures.api import Api
from tests.fixtures.rows import EPOCH, fleet_row, instance_row

from dstack.server.db.queries import health as queries
from dstack.server.db.tables import InstanceRow, ProjectRow
from dstack.server.hosts import health

WELL: dict[str, Any] = {"status": "healthy", "problems": []}
ILL: dict[str, Any] = {
    "status": "failure",
    "problems": [{"status": "failure", "message": "the accelerator H100 is gone"}],
}
HOUR = timedelta(hours=1)


async def add_instance(api: Api) -> InstanceRow:
    async with api.context.database.transaction() as session:
        project = (await session.scalars(select(ProjectRow))).one()
        fleet = fleet_row(project)
        session.add(fleet)
        await session.flush()
        instance = instance_row(fleet)
        session.add(instance)
    return instance


async def checks(api: Api, **bounds: Any) -> list[dict[str, Any]]:
    asked = {"fleet_name": "f1", "instance_num": 0, **bounds}
    answer = await api.ok("project/main/instances/get_instance_health_checks", asked)
    found: list[dict[str, Any]] = answer["health_checks"]
    return found


async def test_changes_are_told_newest_first_and_only_once(api: Api) -> None:
    instance = await add_instance(api)
    assert await checks(api) == []
    for number, told in enumerate((WELL, WELL, ILL, ILL, WELL)):
        await health.record(api.context.database, instance.id, told, EPOCH + number * HOUR)
    assert [check["status"] for check in await checks(api)] == ["healthy", "failure", "healthy"]
    [failed] = await checks(api, after=EPOCH.isoformat(), before=(EPOCH + 3 * HOUR).isoformat())
    assert [event["message"] for event in failed["events"]] == ["the accelerator H100 is gone"]
    assert [check["status"] for check in await checks(api, limit=1)] == ["healthy"]


async def test_an_instance_is_shown_with_its_health(api: Api) -> None:
    instance = await add_instance(api)
    await health.record(api.context.database, instance.id, ILL, EPOCH)
    fleet = await api.ok("project/main/fleets/get", {"name": "f1"})
    assert fleet["instances"][0]["health_status"] == "failure"
    events = await api.ok("events/list", {"target_instances": [str(instance.id)]})
    assert [event["message"] for event in events] == [
        "Instance health changed HEALTHY -> FAILURE (the accelerator H100 is gone)"
    ]


async def test_old_reports_go_but_for_what_still_holds(api: Api) -> None:
    database, instance = api.context.database, await add_instance(api)
    for number, told in enumerate((WELL, ILL)):
        await health.record(database, instance.id, told, EPOCH + number * HOUR)
    async with database.transaction() as session:
        await queries.purge(session, EPOCH + 9 * HOUR)
    assert [check["status"] for check in await checks(api)] == ["failure"]
    async with database.transaction() as session:
        (await session.get_one(InstanceRow, instance.id)).deleted = True
        await session.flush()
        await queries.purge(session, EPOCH + 9 * HOUR)
        assert await queries.find_newest(session, instance.id) is None


async def test_an_unknown_instance_is_named(api: Api) -> None:
    await add_instance(api)
    asked = {"fleet_name": "f1", "instance_num": 7}
    refused = await api.post("project/main/instances/get_instance_health_checks", asked)
    assert refused.status_code == 400
    assert "no instance 7" in refused.text

"""Recorded traffic of the published client about fleets, offers and GPUs, replayed: same shape, same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.fixtures.api import Api
from tests.fixtures.rows import instance_row

from dstack.backends.base import InstanceAddress
from dstack.core.canonical import dump_json
from dstack.core.instances import Resources
from dstack.server.db.tables import FleetRow
from dstack.server.hosts.connections import dump_address
from dstack.server.planning.ssh import REGION, offer_of

CAPTURES = Path(__file__).parents[1] / "reference" / "captures"
OURS = {"id", "created_at", "created", "fleet_id"}
"""Keys whose values are each server's own."""


def capture(number: int) -> Any:
    return json.loads(next(CAPTURES.glob(f"{number:02}-*")).read_text())


async def replay(api: Api, number: int) -> tuple[Any, Any]:
    """Our answer and the recorded one."""
    recorded = capture(number)
    path = recorded["request"]["path"].removeprefix("/api/")
    return await api.ok(path, recorded["request"]["body"]), recorded["response"]["body"]


def comparable(value: Any) -> Any:
    """Without the values that differ from server to server."""
    if isinstance(value, dict):
        return {key: None if key in OURS else comparable(item) for key, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, list) else value


async def test_fleets_are_planned_applied_and_listed_as_recorded(sqlite_api: Api) -> None:
    for number in (7, 8, 9):
        ours, recorded = await replay(sqlite_api, number)
        assert comparable(ours) == comparable(recorded)


async def test_an_instance_has_the_recorded_fields(sqlite_api: Api) -> None:
    await replay(sqlite_api, 8)
    spec = capture(8)["request"]["body"]["plan"]["spec"]
    spec["configuration"] |= {"name": "f2", "nodes": {"min": 1, "max": 1}}
    made = await sqlite_api.ok(
        "project/main/fleets/apply", {"plan": {"spec": spec, "current_resource": None}, "force": False}
    )
    recorded = capture(10)["response"]["body"][0]["instances"][0]
    assert list(made["instances"][0]) == list(recorded)


@pytest.mark.parametrize("number", [37])
async def test_gpus_are_listed_as_recorded(sqlite_api: Api, number: int) -> None:
    ours, recorded = await replay(sqlite_api, number)
    assert {key: ours[key] for key in recorded} == recorded


async def test_offers_are_listed_as_recorded(sqlite_api: Api) -> None:
    ours, recorded = await replay(sqlite_api, 36)
    for key in ("offers", "total_offers", "max_price"):
        assert ours["job_plans"][0][key] == recorded["job_plans"][0][key]


async def test_a_busy_host_is_listed_as_recorded(sqlite_api: Api) -> None:
    """All but its times and ids, from what a fleet's host and its agent leave on record."""
    await replay(sqlite_api, 8)
    [recorded] = capture(10)["response"]["body"]
    [shown] = recorded["instances"]
    resources = Resources.model_validate(shown["instance_type"]["resources"])
    async with sqlite_api.context.database.transaction() as session:
        fleet = (await session.scalars(select(FleetRow))).one()
        address = InstanceAddress(backend_id="1", hostname=shown["hostname"], remote_agent_socket="/agent.sock")
        offer = dump_json(offer_of(resources, 1))
        facts: dict[str, Any] = {
            "backend": "ssh",
            "region": REGION,
            "price": 0.0,
            "address": dump_address(address),
            "offer": offer,
        }
        session.add(instance_row(fleet, name=shown["name"], status="busy", busy_blocks=1, **facts))
    ours, _ = await replay(sqlite_api, 10)
    assert comparable(ours) == comparable([recorded])
    listed = await sqlite_api.ok("instances/list", {})
    assert comparable(listed) == comparable(recorded["instances"])

"""Offers of real backends and of instances on record."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.rows import EPOCH, project_row, user_row

from dstack.backends.registry import BackendContext
from dstack.core.canonical import dump_json
from dstack.core.configurations.files import parse_run_configuration
from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.errors import BackendNotAvailable, InvalidRequest
from dstack.core.fleets import FleetSpec
from dstack.core.images import Images
from dstack.core.instances import InstanceOfferWithAvailability
from dstack.core.job_specs import effective_run_spec, make_job_specs
from dstack.core.runs import RunSpec
from dstack.server.configured_backends import ConfiguredBackends
from dstack.server.db.engine import Database, wake
from dstack.server.db.tables import BackendRow, FleetRow, InstanceRow, ProjectRow
from dstack.server.encryption import Encryption, IdentityKey
from dstack.server.operations.offers import fleet_offers, job_offers, job_plan, load_market, wish_of

ENCRYPTION = Encryption([IdentityKey()])
OFFERS = [
    {"name": "dear", "price": 3.0, "region": "eu"},
    {"name": "cheap", "price": 1.0, "region": "us"},
    {"name": "gpu", "price": 2.0, "region": "eu", "gpus": [{"name": "H100", "memory_gb": 80}] * 2},
]


class Place:
    """A project, its backends, and rows to put there."""

    def __init__(self, database: Database, project: ProjectRow, backends: ConfiguredBackends) -> None:
        self.database = database
        self.project = project
        self.backends = backends

    async def add(self, *rows: Any) -> None:
        async with self.database.transaction() as session:
            session.add_all(rows)

    def backend(self, type: str, **settings: Any) -> BackendRow:
        id = uuid.uuid4()
        auth = ENCRYPTION.encrypt("null", f"backends.auth:{id}")
        config = json.dumps({"type": type, **settings})
        return BackendRow(id=id, project_id=self.project.id, type=type, config=config, auth=auth, created_at=EPOCH)

    def fleet(self, name: str, **settings: Any) -> FleetRow:
        configuration = FleetConfiguration.model_validate({"nodes": "0..2", "name": name, **settings})
        spec = FleetSpec(configuration=configuration, profile=Profile(name="default"))
        return FleetRow(
            id=uuid.uuid4(),
            project_id=self.project.id,
            name=name,
            spec=dump_json(spec),
            created_at=EPOCH,
            last_processed_at=EPOCH,
            status="active",
        )

    def instance(self, fleet: FleetRow, offer: InstanceOfferWithAvailability, **fields: Any) -> InstanceRow:
        values = {
            "id": uuid.uuid4(),
            "project_id": self.project.id,
            "fleet_id": fleet.id,
            "name": f"{fleet.name}-0",
            "created_at": EPOCH,
            "last_processed_at": EPOCH,
            "status": "idle",
            "backend": "fake",
            "offer": dump_json(offer),
            "total_blocks": 1,
        }
        return InstanceRow(**values | fields)

    async def plan(self, *, for_offers_only: bool = False, **configuration: Any) -> list[tuple[str, str, float]]:
        run_spec, job_spec = job(**configuration)
        market = await load_market(self.database, self.backends, self.project.id)
        wish = wish_of(run_spec, job_spec, for_offers_only=for_offers_only)
        return [shown(offer) for offer in job_offers(market, wish)]


def job(**configuration: Any) -> Any:
    parsed = parse_run_configuration({"type": "task", "commands": [":"], "image": "scratch", **configuration})
    run_spec = effective_run_spec(RunSpec(configuration=parsed), run_name="run", ssh_key_pub="key")
    return run_spec, make_job_specs(run_spec, run_name="run", images=Images(), replica_num=0)[0]


def shown(offer: InstanceOfferWithAvailability) -> tuple[str, str, float]:
    return offer.instance.name, offer.availability.value, offer.price


@pytest.fixture
async def place(database: Database, tmp_path: Path) -> AsyncIterator[Place]:
    user = user_row()
    project = project_row(user)
    backends = ConfiguredBackends(database, ENCRYPTION, BackendContext(hosts_dir=tmp_path / "hosts"))
    place = Place(database, project, backends)
    await place.add(user, project)
    await place.add(place.backend("fake", dir=str(tmp_path / "cloud"), offers=OFFERS))
    yield place
    backends.close()


async def test_nothing_is_offered_without_a_fleet_but_shown_when_only_looking(place: Place) -> None:
    assert await place.plan() == []
    assert [name for name, *_ in await place.plan(for_offers_only=True)] == ["cheap", "gpu", "dear"]


async def test_fleets_offer_what_they_may_create(place: Place) -> None:
    await place.add(place.fleet("eu", regions=["EU"]), place.fleet("all", max_price=2.5))
    assert await place.plan() == [
        ("cheap", "available", 1.0),
        ("gpu", "available", 2.0),
        ("dear", "available", 3.0),
    ]
    assert [name for name, *_ in await place.plan(fleets=["eu"])] == ["gpu", "dear"]
    assert [name for name, *_ in await place.plan(fleets=["main/all"])] == ["cheap", "gpu"]
    assert await place.plan(fleets=["other/all"]) == []
    assert await place.plan(creation_policy="reuse") == []
    assert [name for name, *_ in await place.plan(resources={"gpu": "H100:2"})] == ["gpu"]


async def test_existing_instances_come_first_and_fill_the_fleet(place: Place) -> None:
    fleet = place.fleet("f", nodes="0..2")
    market = await load_market(place.database, place.backends, place.project.id)
    dear, cheap = (next(o.offer for o in market.offers if o.offer.instance.name == n) for n in ("dear", "cheap"))
    await place.add(fleet)
    await place.add(place.instance(fleet, dear))
    assert [name for name, *_ in await place.plan()] == ["dear", "cheap", "gpu", "dear"]
    await place.add(place.instance(fleet, cheap, name="f-1", instance_num=1, status="busy", busy_blocks=1))
    assert await place.plan() == [("dear", "idle", 3.0), ("cheap", "busy", 1.0)]
    assert await place.plan(instances=["f-1"]) == [("cheap", "busy", 1.0)]
    assert await place.plan(instances=[{"fleet": "f", "instance": 0}]) == [("dear", "idle", 3.0)]


async def test_distributed_tasks_need_a_cluster(place: Place) -> None:
    await place.add(place.fleet("loose"))
    assert await place.plan(nodes=2) == []
    await place.add(place.fleet("tight", placement="cluster"))
    assert len(await place.plan(nodes=2)) == 3


async def test_a_plan_lists_some_and_counts_all(place: Place) -> None:
    run_spec, job_spec = job()
    market = await load_market(place.database, place.backends, place.project.id)
    offers = job_offers(market, wish_of(run_spec, job_spec, for_offers_only=True))
    plan = job_plan(job_spec, offers, max_offers=2)
    assert [offer.instance.name for offer in plan.offers] == ["cheap", "gpu"]
    assert (plan.total_offers, plan.max_price) == (3, 3.0)
    dearest = job_plan(job_spec, offers, max_offers=1, reverse=True)
    assert [offer.instance.name for offer in dearest.offers] == ["dear"]
    assert job_plan(job_spec, []).max_price is None


async def test_a_fleet_could_be_made_of_what_it_asks_for(place: Place) -> None:
    market = await load_market(place.database, place.backends, place.project.id)
    spec = FleetSpec.model_validate_json(place.fleet("f", resources={"gpu": "1.."}).spec)
    assert [shown(offer) for offer in fleet_offers(market, spec)] == [("gpu", "available", 2.0)]
    hosts = FleetConfiguration.model_validate({"ssh_config": {"hosts": ["h"]}})
    assert fleet_offers(market, FleetSpec(configuration=hosts, profile=Profile())) == []


async def test_the_own_machine_is_offered_as_it_is(place: Place) -> None:
    await place.add(place.backend("local"), place.fleet("all"))
    async with place.database.transaction() as session:
        wake(session, "backends")
    assert ("local", "available", 0.0) in await place.plan()


async def test_backends_are_kept_until_they_change(place: Place, tmp_path: Path) -> None:
    first = await place.backends.get(place.project.id, "fake")
    assert await place.backends.get(place.project.id, "fake") is first
    async with place.database.transaction() as session:
        session.add(place.backend("local"))
        wake(session, "backends")
    assert [backend.type for backend in await place.backends.list_of_project(place.project.id)] == [
        "fake",
        "local",
    ]
    assert await place.backends.get(place.project.id, "fake") is first
    with pytest.raises(BackendNotAvailable, match="no backend 'aws'"):
        await place.backends.get(place.project.id, "aws")


async def test_a_backend_with_bad_settings_does_not_hold_up_the_others(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await place.add(place.backend("local", color="red"))
    assert [backend.type for backend in await place.backends.list_of_project(place.project.id)] == ["fake"]
    assert "Backend local" in caplog.text
    with pytest.raises(InvalidRequest, match="color"):
        await place.backends.get(place.project.id, "local")

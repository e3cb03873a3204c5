"""Backends of a project over the REST API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import select
from tests.fixtures.api import Api
from tests.fixtures.rows import fleet_row, instance_row

from dstack.core.errors import BackendNotAvailable
from dstack.server.db.tables import BackendRow, ProjectRow

BACKENDS = "project/main/backends"


def fake(folder: Path, price: float = 1.0) -> dict[str, Any]:
    return {"type": "fake", "dir": str(folder), "offers": [{"name": "big", "price": price}]}


async def project_id(api: Api) -> Any:
    async with api.context.database.session() as session:
        return await session.scalar(select(ProjectRow.id))


async def test_a_backend_is_made_used_changed_and_deleted(api: Api, tmp_path: Path) -> None:
    project = await project_id(api)
    made = (await api.client.post(f"/api/{BACKENDS}/create", json=fake(tmp_path))).json()
    assert made == fake(tmp_path)
    backend = await api.context.backends.get(project, "fake")
    assert [offer.price for offer in await backend.list_offers(None)] == [1.0]
    again = await api.post(f"{BACKENDS}/create", fake(tmp_path))
    assert again.json()["detail"][0]["code"] == "resource_exists"

    assert (await api.client.post(f"/api/{BACKENDS}/update", json=fake(tmp_path, 2.0))).status_code == 200
    backend = await api.context.backends.get(project, "fake")
    assert [offer.price for offer in await backend.list_offers(None)] == [2.0]
    assert (await api.client.post(f"/api/{BACKENDS}/fake/config_info")).json() == fake(tmp_path, 2.0)

    assert await api.ok(f"{BACKENDS}/delete", {"backends_names": ["fake", "aws"]}) is None
    assert await api.context.backends.list_of_project(project) == []


async def test_a_backend_can_be_written_as_yaml(sqlite_api: Api, tmp_path: Path) -> None:
    text = yaml.safe_dump(fake(tmp_path))
    assert await sqlite_api.ok(f"{BACKENDS}/create_yaml", {"config_yaml": text}) is None
    shown = await sqlite_api.ok(f"{BACKENDS}/fake/get_yaml")
    assert (shown["name"], yaml.safe_load(shown["config_yaml"])) == ("fake", fake(tmp_path))
    changed = yaml.safe_dump(fake(tmp_path, 3.0))
    assert await sqlite_api.ok(f"{BACKENDS}/update_yaml", {"config_yaml": changed}) is None
    for bad in ("type: [", "dir: x", "- list"):
        response = await sqlite_api.post(f"{BACKENDS}/update_yaml", {"config_yaml": bad})
        assert response.status_code == 400


async def test_what_cannot_be_is_explained(sqlite_api: Api) -> None:
    unknown = await sqlite_api.post(f"{BACKENDS}/create", {"type": "aws", "creds": {"type": "default"}})
    detail = unknown.json()["detail"][0]
    assert (unknown.status_code, detail["code"]) == (400, BackendNotAvailable.code)
    assert "'aws' is not available on this server" in detail["msg"]
    bad = await sqlite_api.post(f"{BACKENDS}/create", {"type": "local", "color": "red"})
    assert "color" in bad.json()["detail"][0]["msg"]
    for path, body in (("update", {"type": "local"}), ("local/get_yaml", None), ("local/config_info", None)):
        missing = await sqlite_api.post(f"{BACKENDS}/{path}", body)
        assert missing.json()["detail"][0]["code"] == "resource_not_exists"


async def test_a_backend_with_instances_stays(sqlite_api: Api, tmp_path: Path) -> None:
    await sqlite_api.client.post(f"/api/{BACKENDS}/create", json=fake(tmp_path))
    async with sqlite_api.context.database.transaction() as session:
        project = await session.scalar(select(ProjectRow))
        assert project is not None
        fleet = fleet_row(project)
        session.add_all([fleet, instance_row(fleet)])
    refused = await sqlite_api.post(f"{BACKENDS}/delete", {"backends_names": ["fake"]})
    assert "f1-0" in refused.json()["detail"][0]["msg"]


async def test_credentials_are_encrypted_and_for_admins(sqlite_api: Api, tmp_path: Path) -> None:
    async with sqlite_api.context.database.transaction() as session:
        project = await session.scalar(select(ProjectRow.id))
        id = (await session.scalars(select(BackendRow.id))).first()
        assert id is None
    await sqlite_api.client.post(f"/api/{BACKENDS}/create", json=fake(tmp_path))
    async with sqlite_api.context.database.session() as session:
        row = (await session.scalars(select(BackendRow).where(BackendRow.project_id == project))).one()
    assert sqlite_api.context.encryption.decrypt(row.auth, f"backends.auth:{row.id}") == "null"
    assert row.auth != "null"
    manager = await sqlite_api.as_user("manager", role="manager")
    assert (await manager.post(f"{BACKENDS}/fake/config_info")).status_code == 403
    assert (await manager.post(f"{BACKENDS}/create", fake(tmp_path))).status_code == 403


async def test_types_are_those_of_the_wire(sqlite_api: Api) -> None:
    assert await sqlite_api.anonymous().ok("backends/list_types") == []

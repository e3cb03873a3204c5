"""Backends of a project: where its compute comes from, and the credentials for it."""

from __future__ import annotations

import json
import uuid
from uuid import UUID

import yaml
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.backends import registry
from dstack.backends.registry import BackendContext
from dstack.core.backends import BackendConfig, BackendInfoYAML, BackendType
from dstack.core.errors import InvalidRequest, ResourceExists, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.instances import InstanceStatus
from dstack.core.server_config import BackendFileConfig
from dstack.server import clock, events
from dstack.server.configured_backends import settings_of
from dstack.server.db.engine import wake
from dstack.server.db.tables import BackendRow, InstanceRow
from dstack.server.encryption import Encryption
from dstack.server.operations.context import Context, InProject

CREDENTIALS = "creds"
"""The key of a configuration that is stored encrypted."""


def list_types() -> list[BackendType]:
    """Those of the REST API that this server can be configured with; our own ones are no part of it."""
    wire = {kind.value for kind in BackendType}
    return [BackendType(name) for name in sorted(registry.MODULES) if name in wire]


async def create_backend(ctx: Context, at: InProject, config: BackendConfig) -> BackendConfig:
    """Raises BackendNotAvailable for a type that this server does not have, InvalidRequest for bad settings."""
    _check(ctx, config)
    async with ctx.database.transaction() as session:
        if await _find(session, at.project.id, config.type) is not None:
            raise ResourceExists(f"Project {at.project.name!r} has the backend {config.type!r} already; update it")
        put_backend(session, ctx.encryption, at.project.id, config, None)
        await _record(session, at, f"Backend {config.type} added")
    return config


async def update_backend(ctx: Context, at: InProject, config: BackendConfig) -> BackendConfig:
    """All settings are replaced, credentials included."""
    _check(ctx, config)
    async with ctx.database.transaction() as session:
        row = await _get(session, at, config.type)
        put_backend(session, ctx.encryption, at.project.id, config, row)
        await _record(session, at, f"Backend {config.type} updated")
    return config


async def delete_backends(ctx: Context, at: InProject, names: list[str]) -> None:
    """All or none; unknown ones are ignored. Raises InvalidRequest while instances are left there: nobody could
    end them afterwards."""
    async with ctx.database.transaction() as session:
        for name in dict.fromkeys(names):
            row = await _find(session, at.project.id, name)
            if row is not None:
                await _assert_empty(session, row)
                await session.delete(row)
                await _record(session, at, f"Backend {name} deleted")


async def get_config(ctx: Context, at: InProject, name: str) -> BackendConfig:
    """With credentials: for admins of the project."""
    async with ctx.database.session() as session:
        row = await _get(session, at, name)
    return BackendConfig.model_validate({"type": row.type, **settings_of(row, ctx.encryption)})


async def get_yaml(ctx: Context, at: InProject, name: str) -> BackendInfoYAML:
    """The same as text."""
    config = await get_config(ctx, at, name)
    text = yaml.safe_dump({"type": config.type, **config.settings()}, sort_keys=False)
    return BackendInfoYAML(name=name, config_yaml=text)


def parse_yaml(text: str) -> BackendConfig:
    """Raises InvalidRequest that says what is wrong."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidRequest(f"The backend's configuration is not valid YAML: {error}") from None
    try:
        return BackendConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise InvalidRequest(f"The backend's {field}: {first['msg']}") from None


def _check(ctx: Context, config: BackendConfig) -> None:
    registry.create(config.type, config.settings(), BackendContext(ctx.settings.hosts_dir))


def put_backend(
    session: AsyncSession,
    encryption: Encryption,
    project_id: UUID,
    backend: BackendConfig | BackendFileConfig,
    row: BackendRow | None,
) -> None:
    """Adds the backend, or brings its row in line. Credentials are stored apart and encrypted."""
    settings = backend.settings()
    creds = settings.pop(CREDENTIALS, None)
    if row is None:
        row = BackendRow(id=uuid.uuid4(), project_id=project_id, type=backend.type, created_at=clock.now())
        session.add(row)
    _assign(row, json.dumps({"type": backend.type, **settings}), json.dumps(creds), encryption)
    wake(session, "backends", f"placement:{project_id}")


def _assign(row: BackendRow, config: str, auth: str, encryption: Encryption) -> None:
    """What is the same already is left alone."""
    if row.config != config:
        row.config = config
    context = f"backends.auth:{row.id}"
    if row.auth is None or encryption.needs_rotation(row.auth) or encryption.decrypt(row.auth, context) != auth:
        row.auth = encryption.encrypt(auth, context)


async def _find(session: AsyncSession, project_id: UUID, type: str) -> BackendRow | None:
    query = select(BackendRow).where(BackendRow.project_id == project_id, BackendRow.type == type)
    return await session.scalar(query)


async def _get(session: AsyncSession, at: InProject, type: str) -> BackendRow:
    row = await _find(session, at.project.id, type)
    if row is None:
        raise ResourceNotExists(f"Project {at.project.name!r} has no backend {type!r}")
    return row


async def _assert_empty(session: AsyncSession, row: BackendRow) -> None:
    living = (InstanceRow.deleted.is_(False), InstanceRow.status != InstanceStatus.TERMINATED.value)
    query = select(InstanceRow.name).where(
        InstanceRow.project_id == row.project_id, InstanceRow.backend == row.type, *living
    )
    names = list(await session.scalars(query.order_by(InstanceRow.name).limit(5)))
    if names:
        raise InvalidRequest(f"Backend {row.type!r} has instances ({', '.join(names)}); delete these first")


async def _record(session: AsyncSession, at: InProject, message: str) -> None:
    target = events.Target(EventTargetType.PROJECT.value, at.project.id, at.project.name, at.project.id)
    await events.record(session, message, actor=at.caller.user_id, targets=[target])
    wake(session, "backends", f"placement:{at.project.id}")

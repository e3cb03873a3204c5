"""`config.yml` of the server: read, made at the first start, applied at every start."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from sqlalchemy import select

from dstack.core.configurations.problems import ConfigurationError, describe_problems, field_names, load_yaml
from dstack.core.errors import DstackError
from dstack.core.server_config import (
    OWN_BACKENDS,
    AESEncryptionKeyConfig,
    BackendFileConfig,
    EncryptionConfig,
    ProjectConfig,
    ServerConfig,
)
from dstack.core.users import GlobalRole
from dstack.server.access import DefaultPermissions
from dstack.server.db.engine import Database, wake
from dstack.server.db.tables import BackendRow, ProjectRow, UserRow
from dstack.server.encryption import AesKey, Encryption, EncryptionKey, IdentityKey, own_key
from dstack.server.operations import projects
from dstack.server.operations.backends import put_backend

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncSession

FIRST_TEXT = """\
projects:
- name: main
  backends: []
encryption:
  keys: []
"""


class ConfigError(DstackError):
    """config.yml cannot be read, or something in it is wrong. The text names file and line."""


def read_or_make(path: Path) -> ServerConfig:
    """The file's content; a file with an empty project `main` is made where there is none."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(FIRST_TEXT)
            os.chmod(path, 0o600)
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read or write {path}: {error}") from error
    return parse(text, shown(path))


def parse(text: str, name: str) -> ServerConfig:
    """Raises ConfigError with file, line and what would be right."""
    try:
        data = load_yaml(text, name)
        config = ServerConfig.model_validate(data if data is not None else {})
    except ConfigurationError as error:
        raise ConfigError(str(error)) from None
    except ValidationError as error:
        known = field_names(ServerConfig, ProjectConfig, EncryptionConfig, AESEncryptionKeyConfig)
        raise ConfigError(str(describe_problems(error, text=text, file=name, known_fields=known))) from None
    seen: set[str] = set()
    for project in config.projects:
        if project.name in seen:
            raise ConfigError(f"{name}:{_line_of(text, project.name)}: project {project.name!r} is given twice")
        seen.add(project.name)
    return config


def shown(path: Path) -> str:
    """With `~` for the home folder."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)


def _line_of(text: str, project_name: str) -> int:
    pattern = re.compile(rf"\bname:\s*['\"]?{re.escape(project_name)}['\"]?\s*(#.*)?$")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    return lines[-1] if lines else 1


def encryption_of(config: ServerConfig | None, server_dir: Path) -> tuple[Encryption, str | None]:
    """The keys of the file; without any one of our own is kept beside it. Also what to tell the admin.

    Our own key, once made, stays among those that decrypt.
    """
    configured: list[EncryptionKey] = []
    if config is not None and config.encryption is not None:
        for key in config.encryption.keys:
            if isinstance(key, AESEncryptionKeyConfig):
                configured.append(AesKey(key.name, key.secret))
            else:
                configured.append(IdentityKey())
    if configured and not (server_dir / "encryption.key").exists():
        return Encryption(_with_identity(configured)), None
    own, message = own_key(server_dir)
    return Encryption(_with_identity([*configured, own])), message


def _with_identity(keys: list[EncryptionKey]) -> list[EncryptionKey]:
    """What was stored unencrypted stays readable when keys are added."""
    return keys if any(isinstance(key, IdentityKey) for key in keys) else [*keys, IdentityKey()]


def permissions_of(config: ServerConfig | None) -> DefaultPermissions:
    """`default_permissions`, or what is usual."""
    if config is None or config.default_permissions is None:
        return DefaultPermissions()
    return DefaultPermissions(**config.default_permissions.model_dump())


async def apply(config: ServerConfig, database: Database, encryption: Encryption) -> None:
    """Makes the projects that are missing and brings their backends in line with the file. Idempotent."""
    for project in config.projects:
        async with database.session() as session:
            row = await projects.find(session, project.name)
            owner_id = await _admin_id(session)
        new = projects.new_project(encryption, project.name, owner_id) if row is None else None
        async with database.transaction() as session:
            if new is not None:
                await projects.add_project(session, new, owner_id)
            target = new or row
            assert target is not None
            if project.backends is not None:
                await _set_backends(session, encryption, target, project.backends)


async def _admin_id(session: AsyncSession) -> UUID:
    statement = select(UserRow.id).where(
        UserRow.global_role == GlobalRole.ADMIN.value, UserRow.deleted.is_(False), UserRow.active.is_(True)
    )
    return (await session.execute(statement.order_by(UserRow.created_at).limit(1))).scalar_one()


async def _set_backends(
    session: AsyncSession, encryption: Encryption, project: ProjectRow, wanted: list[BackendFileConfig]
) -> None:
    """Those of the file; our own ones need no configuration, so they stay where the file does not name them."""
    present = {
        row.type: row
        for row in (await session.execute(select(BackendRow).where(BackendRow.project_id == project.id))).scalars()
    }
    named = {backend.type for backend in wanted}
    for backend in wanted:
        put_backend(session, encryption, project.id, backend, present.get(backend.type))
    for type_, row in present.items():
        if type_ not in named and type_ not in OWN_BACKENDS:
            await session.delete(row)
    wake(session, "backends", f"placement:{project.id}")

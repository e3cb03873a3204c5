"""What a server makes for itself when its database is empty, and where it tells the local client of it."""

from __future__ import annotations

import ipaddress
import os
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError
from sqlalchemy import select

from dstack.core.backends import LOCAL
from dstack.core.client_config import ClientConfig, ProjectConfig
from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.configurations.profiles import Profile
from dstack.core.fleets import FleetSpec
from dstack.core.server_config import BackendFileConfig
from dstack.core.users import GlobalRole
from dstack.server import config, events
from dstack.server.db.engine import Database, wake
from dstack.server.db.tables import BackendRow, FleetRow, ProjectRow
from dstack.server.encryption import Encryption
from dstack.server.operations import fleets, projects, users
from dstack.server.operations.backends import put_backend
from dstack.server.settings import Settings

ADMIN = "admin"
MAIN = "main"


@dataclass(frozen=True)
class Admin:
    """The first user. `created`: just now."""

    token: str
    created: bool


async def ensure_admin(database: Database, encryption: Encryption, token: str | None) -> Admin:
    """Makes the user `admin` unless there is one; an existing one keeps its token."""
    async with database.session() as session:
        row = await users.find(session, ADMIN)
    if row is not None:
        return Admin(encryption.decrypt(row.token, f"users.token:{row.id}"), created=False)
    token = token or str(uuid.uuid4())
    new = users.new_user(encryption, ADMIN, GlobalRole.ADMIN, token=token)
    async with database.transaction() as session:
        if await users.find(session, ADMIN) is None:
            session.add(new)
            await events.record(session, "User created", actor=None, targets=[users.user_target(new)])
            return Admin(token, created=True)
    return await ensure_admin(database, encryption, token)


async def ensure_main_project(database: Database, encryption: Encryption) -> bool:
    """Makes project `main` unless there is one; whether it has just been made."""
    if await _ever_had_main(database):
        return False
    async with database.session() as session:
        admin = await users.find(session, ADMIN)
    assert admin is not None
    new = projects.new_project(encryption, MAIN, admin.id)
    async with database.transaction() as session:
        if await projects.find(session, MAIN) is not None:
            return False
        await projects.add_project(session, new, admin.id)
    return True


async def _ever_had_main(database: Database) -> bool:
    async with database.session() as session:
        found = select(ProjectRow.id).where((ProjectRow.name == MAIN) | (ProjectRow.original_name == MAIN))
        return (await session.execute(found.limit(1))).first() is not None


def wants_local_backend(settings: Settings) -> bool:
    """`on`, or `auto` on a server that only this machine can reach."""
    if settings.local_backend == "auto":
        return _is_loopback(settings.host)
    return settings.local_backend == "on"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def ensure_local_backend(database: Database, encryption: Encryption) -> bool:
    """Gives project `main` the backend `local` and a fleet on it; whether either was missing."""
    async with database.transaction() as session:
        project = await projects.find(session, MAIN)
        if project is None:
            return False
        backend = select(BackendRow).where(BackendRow.project_id == project.id, BackendRow.type == LOCAL)
        row = (await session.execute(backend)).scalar_one_or_none()
        if row is None:
            put_backend(session, encryption, project.id, BackendFileConfig(type=LOCAL), None)
            wake(session, "backends")
        named = select(FleetRow.id).where(
            FleetRow.project_id == project.id, FleetRow.name == LOCAL, FleetRow.deleted.is_(False)
        )
        has_fleet = (await session.execute(named)).first() is not None
        if not has_fleet:
            await fleets.add_fleet(session, project.id, local_fleet(), actor=None)
    return row is None or not has_fleet


def local_fleet() -> FleetSpec:
    """A fleet that uses this machine when there is something to run."""
    configuration = FleetConfiguration.model_validate(
        {"type": "fleet", "name": LOCAL, "nodes": "0..1", "blocks": "auto", "backends": ["remote"]}
    )
    return FleetSpec(configuration=configuration, profile=Profile(name="default"))


def tell_client(settings: Settings, token: str, path: Path | None = None) -> str | None:
    """Writes project `main` with its URL and token to the client's configuration file.

    It becomes the default project when there is none, or when the settings (`-y`) or the person at the terminal
    say so. Returns what to tell the person, None when nothing changed.
    """
    path = path or Path.home() / ".dstack" / "config.yml"
    try:
        present = _read_client(path)
    except (OSError, ValueError) as error:
        return f"{config.shown(path)} cannot be read and was left alone: {error}"
    entry = ProjectConfig(name=MAIN, url=settings.public_url, token=token)
    old = present.find_project(MAIN)
    is_ours = old is None or old.url.rstrip("/") == entry.url
    default = present.find_project()
    undisputed = is_ours and (default is None or default is old)
    entry.default = undisputed or _may_replace(settings, path, default)
    if not is_ours and not entry.default:
        return f"Project {MAIN!r} in {config.shown(path)} is of another server; start with -y to replace it"
    if old is not None and (old.url.rstrip("/"), old.token, bool(old.default)) == (
        entry.url,
        token,
        entry.default,
    ):
        return None
    _write_client(path, present, entry)
    return f"Project {MAIN!r} is in {config.shown(path)}" + (", as the default" if entry.default else "")


def _may_replace(settings: Settings, path: Path, default: ProjectConfig | None) -> bool:
    """What the flags say; without any, the person is asked where there is a terminal."""
    if settings.update_default_project or settings.keep_default_project:
        return settings.update_default_project
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    current = default.name if default else "none"
    question = f"Make project {MAIN!r} of this server the default in {config.shown(path)} (now {current})?"
    sys.stdout.write(f"{question} [y/n] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _read_client(path: Path) -> ClientConfig:
    if not path.exists():
        return ClientConfig()
    try:
        return ClientConfig.model_validate(yaml.safe_load(path.read_text()) or {}, extra="ignore")
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _write_client(path: Path, present: ClientConfig, entry: ProjectConfig) -> None:
    """Whole or not at all, readable by its owner only: it holds tokens."""
    others = [project for project in present.projects if project.name != entry.name]
    if entry.default:
        for project in others:
            project.default = False
    present.projects = [*others, entry]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        yaml.safe_dump(present.model_dump(mode="json", exclude_none=True), file, sort_keys=False)
    os.replace(aside, path)

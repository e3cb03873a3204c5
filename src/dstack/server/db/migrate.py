"""Runs Alembic in a given connection. Imported only when there is something to migrate."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

SCRIPTS = Path(__file__).parent / "migrations"

logger = logging.getLogger(__name__)


def upgrade(connection: Connection, revision: str | None) -> None:
    """To the newest revision, in the transaction of `connection`.

    A revision that this version does not know was made by a newer one; migrations expand before they
    contract, so this version can work with it.
    """
    config = configuration(connection)
    if revision is not None and not _is_known(config, revision):
        logger.warning("The database was migrated by a newer version (%s); using it as it is", revision)
        return
    command.upgrade(config, "head")


def configuration(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    return config


def _is_known(config: Config, revision: str) -> bool:
    try:
        return ScriptDirectory.from_config(config).get_revision(revision) is not None
    except CommandError:
        return False

"""The tables, one module a kind."""

from dstack.server.db.tables.base import Reconciled, Row
from dstack.server.db.tables.compute import FleetRow, InstanceRow
from dstack.server.db.tables.events import EventRow, EventTargetRow
from dstack.server.db.tables.metrics import JobMetricsPointRow
from dstack.server.db.tables.projects import (
    BackendRow,
    CodeRow,
    FileArchiveRow,
    MemberRow,
    ProjectRow,
    RepoCredsRow,
    RepoRow,
    SecretRow,
)
from dstack.server.db.tables.runs import JobRow, RunRow, ServiceLoadRow
from dstack.server.db.tables.users import UserPublicKeyRow, UserRow, UserTokenRow

__all__ = [
    "BackendRow",
    "CodeRow",
    "EventRow",
    "EventTargetRow",
    "FileArchiveRow",
    "FleetRow",
    "InstanceRow",
    "JobMetricsPointRow",
    "JobRow",
    "MemberRow",
    "ProjectRow",
    "Reconciled",
    "RepoCredsRow",
    "RepoRow",
    "Row",
    "RunRow",
    "SecretRow",
    "ServiceLoadRow",
    "UserPublicKeyRow",
    "UserRow",
    "UserTokenRow",
]

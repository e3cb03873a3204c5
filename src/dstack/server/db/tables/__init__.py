"""The tables, one module a kind."""

from dstack.server.db.tables.base import Reconciled, Row
from dstack.server.db.tables.compute import FleetRow, InstanceRow
from dstack.server.db.tables.events import EventRow, EventTargetRow
from dstack.server.db.tables.gateways import GatewayReplicaRow, GatewayRow
from dstack.server.db.tables.health import InstanceHealthCheckRow
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
from dstack.server.db.tables.sharing import ExportedFleetRow, ExportedGatewayRow, ExportRow, ImportRow
from dstack.server.db.tables.ssh_door import SshHostKeyRow
from dstack.server.db.tables.users import UserPublicKeyRow, UserRow, UserTokenRow
from dstack.server.db.tables.volumes import JobVolumeRow, VolumeAttachmentRow, VolumeRow

__all__ = [
    "BackendRow",
    "CodeRow",
    "EventRow",
    "EventTargetRow",
    "ExportRow",
    "ExportedFleetRow",
    "ExportedGatewayRow",
    "FileArchiveRow",
    "FleetRow",
    "GatewayReplicaRow",
    "GatewayRow",
    "ImportRow",
    "InstanceHealthCheckRow",
    "InstanceRow",
    "JobMetricsPointRow",
    "JobRow",
    "JobVolumeRow",
    "MemberRow",
    "ProjectRow",
    "Reconciled",
    "RepoCredsRow",
    "RepoRow",
    "Row",
    "RunRow",
    "SecretRow",
    "ServiceLoadRow",
    "SshHostKeyRow",
    "UserPublicKeyRow",
    "UserRow",
    "UserTokenRow",
    "VolumeAttachmentRow",
    "VolumeRow",
]

"""What every operation works with, and on whose behalf."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from dstack.core.projects import ProjectRole
from dstack.server.access import Access, Caller, DefaultPermissions, FailedAttempts, ProjectAccess
from dstack.server.configured_backends import ConfiguredBackends
from dstack.server.db.engine import Database
from dstack.server.encryption import Encryption
from dstack.server.hosts.activity import Activity
from dstack.server.operations.connection_info import Door
from dstack.server.operations.finished_runs import FinishedRuns
from dstack.server.operations.own_users import OwnUsers
from dstack.server.settings import Settings
from dstack.server.stores.logs.base import LogStore


@dataclass
class Context:
    """The parts of the server that operations use. Built once, in `server.app`."""

    settings: Settings
    database: Database
    encryption: Encryption
    access: Access
    logs: LogStore
    backends: ConfiguredBackends
    own_users: OwnUsers
    activity: Activity
    """Whoever carries a connection into a job says so here."""
    permissions: DefaultPermissions = field(default_factory=DefaultPermissions)
    failed_attempts: FailedAttempts = field(default_factory=FailedAttempts)
    """Of the REST API and of the proxy together."""
    finished_runs: FinishedRuns = field(default_factory=FinishedRuns)
    ssh_host_key: str | None = None
    """Public half of the SSH door's key, as clients pin it; None while the door cannot be opened."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server is asked to end; answers that stream end themselves then."""

    @property
    def ssh(self) -> Door:
        """The SSH door as clients are told of it."""
        settings = self.settings
        proxy = settings.sshproxy_address if settings.ssh_port is not None else None
        return Door(settings.ssh_address, self.ssh_host_key, proxy, settings.is_sshproxy_only)


@dataclass(frozen=True)
class InProject:
    """A caller in a project. `role` is None for somebody who is not a member."""

    caller: Caller
    project: ProjectAccess
    role: ProjectRole | None

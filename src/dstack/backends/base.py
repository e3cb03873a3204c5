"""The one interface that every backend implements.

A backend is asked with names that the server wrote down before: every call is idempotent, so a call whose
answer was lost is simply made again. Errors are `dstack.core.errors.BackendError` and its kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from dstack.core.configurations.volume import VolumeConfiguration
from dstack.core.instances import InstanceOffer, InstanceOfferWithAvailability, Requirements
from dstack.core.volumes import VolumeProvisioningData


@dataclass(frozen=True)
class InstanceRequest:
    """What to make sure of. `name` is unique in the backend and on record before the call."""

    name: str
    project_name: str
    offer: InstanceOffer
    user_data: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    """Labels for the bill, where the backend has such."""


@dataclass(frozen=True)
class InstanceAddress:
    """Where an instance and its agent are. Exactly one way to the agent is set.

    `agent_socket`: a Unix socket on this machine. `hostname` with `ssh_port` and `username`: over SSH (the
    agent's socket is then `remote_agent_socket` on the host).
    """

    backend_id: str
    hostname: str
    agent_socket: str | None = None
    internal_ip: str | None = None
    ssh_port: int | None = None
    username: str = "root"
    remote_agent_socket: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VolumeRequest:
    """What to make sure of. `name` is unique in the backend and on record before the call; a configuration with a
    `volume_id` (or the like) is of a disk that is there already."""

    name: str
    project_name: str
    configuration: VolumeConfiguration


@dataclass(frozen=True)
class AttachedVolume:
    """How a volume appears on a host: a folder of it, ready to be mounted into jobs."""

    host_path: str


class Volumes(Protocol):
    """The part of a backend that makes volumes. All calls are idempotent, and raise what those of `Backend` do."""

    wire_type: str
    """The `backend` of the volume configurations that it takes."""

    async def ensure_volume(self, request: VolumeRequest) -> VolumeProvisioningData | None:
        """Creates the disk, or finds the one of that name or id. None: on its way, ask again."""
        ...

    async def ensure_deleted(self, name: str, disk: VolumeProvisioningData | None) -> bool:
        """True when the disk is no more; `disk` is None when nobody knows whether it ever was."""
        ...

    async def ensure_attached(
        self, disk: VolumeProvisioningData, instance: InstanceAddress
    ) -> AttachedVolume | None:
        """None: on its way, ask again."""
        ...

    async def ensure_detached(self, disk: VolumeProvisioningData, instance: InstanceAddress) -> bool:
        """True when the disk is not attached to that instance, or there is no such instance any more."""
        ...


class Backend(Protocol):
    """One configured backend of a project."""

    type: str
    """Its name in configuration files (`local`, `fake`, `aws`, …); see `wire_type` for the REST API."""
    wire_type: str
    """The value shown in the enumerated `backend` fields of the REST API (`remote` for ours)."""
    volumes: Volumes | None
    """None: it makes none."""

    async def list_offers(self, requirements: Requirements | None) -> list[InstanceOfferWithAvailability]:
        """What could be had, cheapest first."""
        ...

    async def ensure_instance(self, request: InstanceRequest) -> InstanceAddress | None:
        """Creates the instance, or finds the one of that name. None: on its way, ask again.

        Raises NoCapacity, QuotaExceeded, CredentialsRejected (terminal) or BackendUnavailable (retryable).
        """
        ...

    async def ensure_terminated(self, name: str) -> bool:
        """True when no instance of that name exists any more."""
        ...

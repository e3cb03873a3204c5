"""Volumes of a project. None of the backends of this server makes volumes, so there never are any."""

from __future__ import annotations

from dstack.core.configurations.volume import VolumeConfiguration
from dstack.core.errors import BackendNotAvailable, ResourceNotExists
from dstack.core.volumes import Volume
from dstack.server.operations.context import InProject


def get_volume(at: InProject, name: str) -> Volume:
    """Raises ResourceNotExists."""
    raise ResourceNotExists(f"Volume {name!r} does not exist in project {at.project.name!r}")


def create_volume(at: InProject, configuration: VolumeConfiguration) -> Volume:
    """Raises BackendNotAvailable."""
    raise BackendNotAvailable(
        f"Project {at.project.name!r} has no backend {configuration.backend!r} that makes volumes; "
        "jobs on hosts of your own can mount a folder of the host with `volumes: [/folder:/path]`"
    )

"""Volumes: disks that outlive the instances they are attached to."""

from typing import Annotated, Literal

from pydantic import Field

from dstack.core.configurations.profiles import Tags
from dstack.core.durations import IdleDuration
from dstack.core.models import CoreModel
from dstack.core.resources import Memory


class AWSVolumeConfiguration(CoreModel):
    """`backend: aws`. Without `volume_id` a disk of `size` is created."""

    type: Literal["volume"] = "volume"
    """Which kind of configuration this is."""
    backend: Literal["aws"] = "aws"
    """Where the volume is."""
    name: str | None = None
    """Name of the volume; one is made up where it is left out."""
    auto_cleanup_duration: IdleDuration = None
    """Deletes the volume after nobody has used it for this long; `off`: never."""
    tags: Tags | None = None
    """Labels for the cloud's bill."""
    size: Memory | None = None
    """Of a new one."""
    volume_id: str | None = None
    """An existing one, by its id at the backend."""
    region: str
    """Where it is."""
    availability_zone: str | None = None
    """Where it is."""


class GCPVolumeConfiguration(CoreModel):
    """`backend: gcp`. Without `volume_id` a disk of `size` is created."""

    type: Literal["volume"] = "volume"
    """Which kind of configuration this is."""
    backend: Literal["gcp"] = "gcp"
    """Where the volume is."""
    name: str | None = None
    """Name of the volume; one is made up where it is left out."""
    auto_cleanup_duration: IdleDuration = None
    """Deletes the volume after nobody has used it for this long; `off`: never."""
    tags: Tags | None = None
    """Labels for the cloud's bill."""
    size: Memory | None = None
    """Of a new one."""
    volume_id: str | None = None
    """An existing one, by its id at the backend."""
    region: str
    """Where it is."""
    availability_zone: str | None = None
    """Where it is."""


class RunpodVolumeConfiguration(CoreModel):
    """`backend: runpod`. An `availability_zone` is accepted for older files and not used."""

    type: Literal["volume"] = "volume"
    """Which kind of configuration this is."""
    backend: Literal["runpod"] = "runpod"
    """Where the volume is."""
    name: str | None = None
    """Name of the volume; one is made up where it is left out."""
    auto_cleanup_duration: IdleDuration = None
    """Deletes the volume after nobody has used it for this long; `off`: never."""
    tags: Tags | None = None
    """Labels for the cloud's bill."""
    size: Memory | None = None
    """Of a new one."""
    volume_id: str | None = None
    """An existing one, by its id at the backend."""
    region: str
    """Where it is."""
    availability_zone: str | None = Field(default=None, exclude=True)
    """Where it is."""


class KubernetesVolumeConfiguration(CoreModel):
    """`backend: kubernetes`. Without `claim_name` a claim of `size` is created."""

    type: Literal["volume"] = "volume"
    """Which kind of configuration this is."""
    backend: Literal["kubernetes"] = "kubernetes"
    """Where the volume is."""
    name: str | None = None
    """Name of the volume; one is made up where it is left out."""
    auto_cleanup_duration: IdleDuration = None
    """Deletes the volume after nobody has used it for this long; `off`: never."""
    tags: Tags | None = None
    """Labels for the cloud's bill."""
    size: Memory | None = None
    """Of a new one."""
    region: str = ""
    """Where it is."""
    claim_name: str | None = None
    """An existing claim."""
    storage_class_name: str | None = None
    """Of a new claim."""
    access_modes: list[str] = Field(default_factory=lambda: ["ReadWriteOnce"])
    """Of a new claim."""
    read_only: bool = False
    """Mounts it for reading only."""


class DaytonaVolumeConfiguration(CoreModel):
    """`backend: daytona`."""

    type: Literal["volume"] = "volume"
    """Which kind of configuration this is."""
    backend: Literal["daytona"] = "daytona"
    """Where the volume is."""
    name: str | None = None
    """Name of the volume; one is made up where it is left out."""
    auto_cleanup_duration: IdleDuration = None
    """Deletes the volume after nobody has used it for this long; `off`: never."""
    tags: Tags | None = None
    """Labels for the cloud's bill."""
    volume_id: str | None = None
    """An existing one, by its id at the backend."""


class LiumVolumeConfiguration(CoreModel):
    """`backend: lium`."""

    type: Literal["volume"] = "volume"
    """Which kind of configuration this is."""
    backend: Literal["lium"] = "lium"
    """Where the volume is."""
    name: str | None = None
    """Name of the volume; one is made up where it is left out."""
    auto_cleanup_duration: IdleDuration = None
    """Deletes the volume after nobody has used it for this long; `off`: never."""
    tags: Tags | None = None
    """Labels for the cloud's bill."""
    volume_id: str | None = None
    """An existing one, by its id at the backend."""


VolumeConfiguration = Annotated[
    AWSVolumeConfiguration
    | GCPVolumeConfiguration
    | RunpodVolumeConfiguration
    | KubernetesVolumeConfiguration
    | DaytonaVolumeConfiguration
    | LiumVolumeConfiguration,
    Field(discriminator="backend"),
]
"""`type: volume`; the fields depend on the backend."""

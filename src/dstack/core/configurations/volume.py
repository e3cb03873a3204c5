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
    backend: Literal["aws"] = "aws"
    name: str | None = None
    auto_cleanup_duration: IdleDuration = None
    tags: Tags | None = None
    size: Memory | None = None
    volume_id: str | None = None
    region: str
    availability_zone: str | None = None


class GCPVolumeConfiguration(CoreModel):
    """`backend: gcp`. Without `volume_id` a disk of `size` is created."""

    type: Literal["volume"] = "volume"
    backend: Literal["gcp"] = "gcp"
    name: str | None = None
    auto_cleanup_duration: IdleDuration = None
    tags: Tags | None = None
    size: Memory | None = None
    volume_id: str | None = None
    region: str
    availability_zone: str | None = None


class RunpodVolumeConfiguration(CoreModel):
    """`backend: runpod`. An `availability_zone` is accepted for older files and not used."""

    type: Literal["volume"] = "volume"
    backend: Literal["runpod"] = "runpod"
    name: str | None = None
    auto_cleanup_duration: IdleDuration = None
    tags: Tags | None = None
    size: Memory | None = None
    volume_id: str | None = None
    region: str
    availability_zone: str | None = Field(default=None, exclude=True)


class KubernetesVolumeConfiguration(CoreModel):
    """`backend: kubernetes`. Without `claim_name` a claim of `size` is created."""

    type: Literal["volume"] = "volume"
    backend: Literal["kubernetes"] = "kubernetes"
    name: str | None = None
    auto_cleanup_duration: IdleDuration = None
    tags: Tags | None = None
    size: Memory | None = None
    region: str = ""
    claim_name: str | None = None
    storage_class_name: str | None = None
    access_modes: list[str] = Field(default_factory=lambda: ["ReadWriteOnce"])
    read_only: bool = False


class DaytonaVolumeConfiguration(CoreModel):
    """`backend: daytona`."""

    type: Literal["volume"] = "volume"
    backend: Literal["daytona"] = "daytona"
    name: str | None = None
    auto_cleanup_duration: IdleDuration = None
    tags: Tags | None = None
    volume_id: str | None = None


class LiumVolumeConfiguration(CoreModel):
    """`backend: lium`."""

    type: Literal["volume"] = "volume"
    backend: Literal["lium"] = "lium"
    name: str | None = None
    auto_cleanup_duration: IdleDuration = None
    tags: Tags | None = None
    volume_id: str | None = None


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

"""Volumes of a project."""

import enum
from uuid import UUID

from dstack.core.backends import BackendType
from dstack.core.configurations.volume import VolumeConfiguration
from dstack.core.models import CoreModel, Timestamp


class VolumeStatus(str, enum.Enum):
    """Where a volume is in its life."""

    SUBMITTED = "submitted"
    PROVISIONING = "provisioning"
    ACTIVE = "active"
    FAILED = "failed"

    def is_finished(self) -> bool:
        """Whether it never changes again by itself."""
        return self is VolumeStatus.FAILED


class VolumeProvisioningData(CoreModel):
    """The disk behind a volume. `size_gb` is in gigabytes, `price` in dollars per month."""

    backend: BackendType | None = None
    volume_id: str
    size_gb: int | None
    availability_zone: str | None = None
    price: float | None = None
    attachable: bool = True
    detachable: bool = True
    backend_data: str | None = None


class VolumeAttachmentData(CoreModel):
    """How a volume appears on an instance."""

    device_name: str | None = None


class VolumeInstance(CoreModel):
    """An instance that a volume is attached to."""

    name: str
    fleet_name: str | None = None
    instance_num: int
    instance_id: str | None = None


class VolumeAttachment(CoreModel):
    """Where a volume is attached."""

    instance: VolumeInstance
    attachment_data: VolumeAttachmentData | None = None


class Volume(CoreModel):
    """A volume. `cost` is in dollars so far."""

    id: UUID
    name: str
    user: str
    project_name: str
    configuration: VolumeConfiguration
    external: bool
    created_at: Timestamp
    last_processed_at: Timestamp
    status: VolumeStatus
    status_message: str | None = None
    deleted: bool
    deleted_at: Timestamp | None = None
    volume_id: str | None = None
    provisioning_data: VolumeProvisioningData | None = None
    cost: float = 0
    attachments: list[VolumeAttachment] | None = None
    attachment_data: VolumeAttachmentData | None = None

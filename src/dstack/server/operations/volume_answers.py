"""Volumes as the REST API shows them, from their rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.configurations.volume import VolumeConfiguration
from dstack.core.volumes import (
    Volume,
    VolumeAttachment,
    VolumeInstance,
    VolumeProvisioningData,
    VolumeStatus,
)
from dstack.server import clock
from dstack.server.db.queries import volumes as queries

SECONDS_PER_MONTH = 30 * 24 * 3600
_CONFIGURATION: TypeAdapter[VolumeConfiguration] = TypeAdapter(VolumeConfiguration)


async def load(session: AsyncSession, rows: Sequence[RowMapping]) -> list[Volume]:
    """One query for the attachments of all. `rows`: columns of `volumes`, `project_name` and `user_name`."""
    attachments: dict[UUID, list[VolumeAttachment]] = {row["id"]: [] for row in rows}
    for one in await queries.list_attachments(session, list(attachments)):
        instance = VolumeInstance(
            name=one.instance_name,
            fleet_name=one.fleet_name,
            instance_num=one.instance_num,
            instance_id=str(one.instance_id),
        )
        attachments[one.volume_id].append(VolumeAttachment(instance=instance))
    return [_to_volume(row, attachments[row["id"]]) for row in rows]


def _to_volume(row: RowMapping, attachments: list[VolumeAttachment]) -> Volume:
    configuration = _CONFIGURATION.validate_json(row["configuration"], extra="ignore")
    disk = None
    if row["provisioning_data"] is not None:
        disk = VolumeProvisioningData.model_validate_json(row["provisioning_data"], extra="ignore")
    return Volume(
        id=row["id"],
        name=row["name"],
        user=row["user_name"],
        project_name=row["project_name"],
        configuration=configuration,
        external=row["is_external"],
        created_at=row["created_at"],
        last_processed_at=row["last_processed_at"],
        status=_status(row),
        status_message=row["status_message"],
        deleted=row["deleted"],
        deleted_at=row["deleted_at"],
        volume_id=None if disk is None else disk.volume_id,
        provisioning_data=disk,
        cost=_cost(disk, row["created_at"], row["deleted_at"]),
        attachments=attachments,
    )


def _status(row: RowMapping) -> VolumeStatus:
    """A deleted one shows what it was before."""
    if row["status"] in [status.value for status in VolumeStatus]:
        return VolumeStatus(row["status"])
    return VolumeStatus.FAILED if row["status_message"] is not None else VolumeStatus.ACTIVE


def _cost(disk: VolumeProvisioningData | None, since: datetime, until: datetime | None) -> float:
    """In dollars, from its creation until now or its deletion."""
    if disk is None or disk.price is None:
        return 0.0
    return disk.price * ((until or clock.now()) - since).total_seconds() / SECONDS_PER_MONTH

"""Volumes of the simulated cloud: folders that it keeps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from dstack.backends.base import AttachedVolume, InstanceAddress, VolumeRequest
from dstack.backends.fake import cloud
from dstack.core.backends import BackendType
from dstack.core.volumes import VolumeProvisioningData

DOLLARS_PER_GB = 0.1
"""A month."""


class FakeVolumes:
    """See `backends.base.Volumes`."""

    def __init__(self, folder: Path, wire_type: str) -> None:
        self._folder = folder
        self.wire_type = wire_type

    async def ensure_volume(self, request: VolumeRequest) -> VolumeProvisioningData | None:
        """A disk is named by its id: that of the request, or the name it is created with."""
        given = getattr(request.configuration, "volume_id", None)
        if given is not None:
            made = await self._call("GET", f"/volumes/{given}")
        else:
            size = getattr(request.configuration, "size", None)
            made = await self._call("PUT", f"/volumes/{request.name}", {"size_gb": size})
        size_gb = made["size_gb"]
        return VolumeProvisioningData(
            backend=BackendType(self.wire_type),
            volume_id=made["id"],
            size_gb=None if size_gb is None else int(size_gb),
            price=None if size_gb is None else size_gb * DOLLARS_PER_GB,
        )

    async def ensure_deleted(self, name: str, disk: VolumeProvisioningData | None) -> bool:
        await self._call("DELETE", f"/volumes/{name if disk is None else disk.volume_id}")
        return True

    async def ensure_attached(
        self, disk: VolumeProvisioningData, instance: InstanceAddress
    ) -> AttachedVolume | None:
        made = await self._call("PUT", f"/volumes/{disk.volume_id}/attachments/{instance.backend_id}")
        return AttachedVolume(host_path=made["path"])

    async def ensure_detached(self, disk: VolumeProvisioningData, instance: InstanceAddress) -> bool:
        await self._call("DELETE", f"/volumes/{disk.volume_id}/attachments/{instance.backend_id}")
        return True

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        return await asyncio.to_thread(cloud.call, self._folder / "cloud.sock", method, path, body)

"""A simulated backend: its instances live in a simulated cloud and their agents run nothing.

Settings: `dir`, the folder of the simulator (required); `offers`, a list of `{name, cpus, memory_gb, disk_gb,
gpus: [{name, memory_gb}], price, region, spot, zones}`, by default one small machine; `volumes_as`.
See docs/reference/fake-backend.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dstack.backends.base import InstanceAddress, InstanceRequest
from dstack.backends.fake import cloud
from dstack.backends.fake.volumes import FakeVolumes
from dstack.backends.registry import BackendContext
from dstack.core.backends import BackendType
from dstack.core.errors import InvalidRequest
from dstack.core.instances import (
    Disk,
    Gpu,
    InstanceAvailability,
    InstanceOfferWithAvailability,
    InstanceType,
    Requirements,
    Resources,
)
from dstack.core.models import CoreModel


class FakeGpu(CoreModel):
    """One GPU of a simulated machine."""

    name: str
    memory_gb: float = 24


class FakeOffer(CoreModel):
    """A kind of machine that the simulated cloud has; the price is in dollars per hour."""

    name: str = "small"
    cpus: int = 16
    memory_gb: float = 64
    disk_gb: float = 500
    gpus: list[FakeGpu] = Field(default_factory=list)
    price: float = 0.1
    region: str = "simulated"
    spot: bool = False
    zones: list[str] | None = None

    def as_offer(self) -> InstanceOfferWithAvailability:
        resources = Resources(
            cpus=self.cpus,
            memory_mib=int(self.memory_gb * 1024),
            gpus=[Gpu(name=gpu.name, memory_mib=int(gpu.memory_gb * 1024)) for gpu in self.gpus],
            spot=self.spot,
            disk=Disk(size_mib=int(self.disk_gb * 1024)),
        )
        return InstanceOfferWithAvailability(
            backend=BackendType.REMOTE,
            instance=InstanceType(name=self.name, resources=resources),
            region=self.region,
            price=self.price,
            availability=InstanceAvailability.AVAILABLE,
            availability_zones=self.zones,
        )


class FakeSettings(CoreModel):
    """The keys beside `type: fake`."""

    dir: Path
    offers: list[FakeOffer] = Field(default_factory=lambda: [FakeOffer()])
    volumes_as: str | None = None
    """The `backend` of volume configurations whose volumes the simulated cloud makes; None: it makes none."""


class FakeBackend:
    """See the module."""

    type = "fake"
    wire_type = BackendType.REMOTE.value

    def __init__(self, settings: FakeSettings) -> None:
        self.settings = settings
        self.volumes = None if settings.volumes_as is None else FakeVolumes(settings.dir, settings.volumes_as)

    async def list_offers(self, requirements: Requirements | None) -> list[InstanceOfferWithAvailability]:
        """All that is configured, cheapest first."""
        return sorted((offer.as_offer() for offer in self.settings.offers), key=lambda offer: offer.price)

    async def ensure_instance(self, request: InstanceRequest) -> InstanceAddress | None:
        resources = request.offer.instance.resources
        body = {
            "cpus": resources.cpus,
            "memory_bytes": resources.memory_mib * 2**20,
            "tags": request.tags,
            "gpus": [
                {"vendor": "nvidia", "name": gpu.name, "memory_mib": gpu.memory_mib} for gpu in resources.gpus
            ],
        }
        await self._call("PUT", f"/instances/{request.name}", body)
        return InstanceAddress(
            backend_id=request.name,
            hostname=request.name,
            agent_socket=str(self.settings.dir / "instances" / f"{request.name}.sock"),
            internal_ip="127.0.0.1",
        )

    async def ensure_terminated(self, name: str) -> bool:
        await self._call("DELETE", f"/instances/{name}")
        return True

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        return await asyncio.to_thread(cloud.call, self.settings.dir / "cloud.sock", method, path, body)


def create(settings: Mapping[str, Any], context: BackendContext) -> FakeBackend:
    """Raises InvalidRequest when the settings make no sense."""
    try:
        return FakeBackend(FakeSettings.model_validate(dict(settings)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"Backend fake, {field}: {first['msg']}") from error

"""Which volumes a job gets, and where it can run for their sake. Pure.

A volume is where it is: jobs that mount it run on instances of its backend and region, and it is attached to one
instance at a time, which several jobs may share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from uuid import UUID

from dstack.core.configurations.mounts import InstanceMountPoint, VolumeMountPoint


class Mount(NamedTuple):
    """A volume, the first that can be had of these names, and where it appears in the job."""

    names: tuple[str, ...]
    path: str


class Place(NamedTuple):
    """Where a volume or an instance is. `backend`: its own type; an empty zone is any."""

    backend: str
    region: str
    zone: str = ""

    def fits(self, other: Place) -> bool:
        zones = {self.zone, other.zone} - {""}
        return (self.backend, self.region.lower()) == (other.backend, other.region.lower()) and len(zones) < 2


@dataclass(frozen=True)
class KnownVolume:
    """A volume of the project."""

    id: UUID
    name: str
    place: Place | None
    """None while it is not there yet, or failed."""
    problem: str | None = None
    """Why it will never be there."""
    attached_to: UUID | None = None
    """An instance."""
    is_used: bool = False
    """By an unfinished job; else it is about to be detached."""


class Mounted(NamedTuple):
    """A volume that was chosen for a job."""

    volume: KnownVolume
    path: str


Volumes = Mapping[str, KnownVolume]
"""By name."""


def mounts_of(points: Iterable[VolumeMountPoint | InstanceMountPoint] | None) -> tuple[Mount, ...]:
    """The network volumes among the mount points of a job."""
    return tuple(
        Mount((point.name,) if isinstance(point.name, str) else tuple(point.name), point.path)
        for point in points or ()
        if isinstance(point, VolumeMountPoint)
    )


def problem(mounts: Iterable[Mount], volumes: Volumes) -> str | None:
    """Why the mounts can never be had; None when they can, now or soon."""
    for mount in mounts:
        reasons = [_problem(name, volumes) for name in mount.names]
        if all(reason is not None for reason in reasons):
            return "; ".join(filter(None, reasons))
    return None


def _problem(name: str, volumes: Volumes) -> str | None:
    volume = volumes.get(name)
    if volume is None:
        return f"Volume {name} does not exist"
    if volume.problem is not None:
        return f"Volume {name} is not usable: {volume.problem}"
    return None


def taken(mounts: Iterable[Mount], volumes: Volumes) -> str | None:
    """The volumes of a mount all of whose choices are in use by other jobs, on whatever instance; else None."""
    for mount in mounts:
        choices = [volumes[name] for name in mount.names if name in volumes]
        if choices and all(volume.is_used for volume in choices):
            return f"Volume {' and volume '.join(volume.name for volume in choices)} is used by another job"
    return None


def is_coming(mounts: Iterable[Mount], volumes: Volumes) -> bool:
    """Whether some volume is still being made or detached."""
    known = [volumes[name] for mount in mounts for name in mount.names if name in volumes]
    return any(
        one.problem is None and (one.place is None or (one.attached_to is not None and not one.is_used))
        for one in known
    )


def choose(mounts: Sequence[Mount], volumes: Volumes, place: Place, instance: UUID | None) -> list[Mounted] | None:
    """For each mount the first volume that an instance there can have; None unless each has one.

    `instance` None: one that is yet to be made, which can have what is attached nowhere.
    """
    chosen = []
    for mount in mounts:
        found = next((one for name in mount.names if _can_have(one := volumes.get(name), place, instance)), None)
        if found is None:
            return None
        chosen.append(Mounted(found, mount.path))
    return chosen


def _can_have(volume: KnownVolume | None, place: Place, instance: UUID | None) -> bool:
    if volume is None or volume.place is None or volume.problem is not None:
        return False
    if volume.attached_to is not None and not (volume.is_used and volume.attached_to == instance):
        return False  # elsewhere, or about to be detached
    return volume.place.fits(place)


def places(mounts: Sequence[Mount], volumes: Volumes) -> list[Place]:
    """Where new instances could have all of the mounts, best first."""
    if not mounts:
        return []
    known = [volumes[name] for name in mounts[0].names if name in volumes]
    candidates = [volume.place for volume in known if volume.place is not None]
    return [place for place in dict.fromkeys(candidates) if choose(mounts, volumes, place, None) is not None]


def attach(volumes: Volumes, chosen: Iterable[Mounted], instance: UUID) -> dict[str, KnownVolume]:
    """The volumes as they are once the instance has the chosen ones."""
    changed = {one.volume.name: replace(one.volume, attached_to=instance, is_used=True) for one in chosen}
    return {**volumes, **changed}

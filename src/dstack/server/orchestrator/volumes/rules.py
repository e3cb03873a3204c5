"""What should happen next to a volume. Pure.

Its name is on record before the disk is made. Jobs attach it when they start; here it is detached once no job uses
it, and deleted when the user asks for it or it has not been used for long enough.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from typing_extensions import assert_never

from dstack.server.orchestrator.decision import Decision, Effect, Key, Kind

POLL = timedelta(seconds=2)
"""How often a backend is asked whether a disk is on its way, detached or gone."""


class VolumeState(str, enum.Enum):
    """The statuses of the REST API, and `deleted`, which it shows as a flag."""

    SUBMITTED = "submitted"
    PROVISIONING = "provisioning"
    ACTIVE = "active"
    FAILED = "failed"
    DELETED = "deleted"

    def is_finished(self) -> bool:
        """Whether it never changes again."""
        return self is VolumeState.DELETED


S = VolumeState


@dataclass(frozen=True)
class AttachmentFacts:
    """An instance that the volume is, or is about to be, attached to."""

    instance_id: UUID
    is_used: bool
    """By an unfinished job."""
    is_detached: bool = False
    """The backend has confirmed it."""


@dataclass(frozen=True)
class VolumeSnapshot:
    """All that is known of a volume."""

    id: UUID
    project_id: UUID
    name: str
    status: VolumeState
    idle_since: datetime
    """When the last job that used it was over, or else when it was made."""
    is_external: bool = False
    has_disk: bool = False
    failure: str | None = None
    attachments: tuple[AttachmentFacts, ...] = ()
    cleanup_after: timedelta | None = None
    """Unused for so long it is deleted; None: never."""
    delete_requested: bool = False
    is_gone: bool = False

    @property
    def placement_key(self) -> Key:
        return Key(Kind.PLACEMENT, self.project_id)


@dataclass(frozen=True)
class EnsureVolume(Effect):
    """Creates the disk, or finds it."""


@dataclass(frozen=True)
class EnsureDetached(Effect):
    """Has the backend take the disk from the instance."""

    instance_id: UUID


@dataclass(frozen=True)
class EnsureDeleted(Effect):
    """Has the backend delete the disk."""


@dataclass(frozen=True)
class DropAttachments:
    """A write: the volume is no longer attached to these instances."""

    instance_ids: tuple[UUID, ...]


@dataclass(frozen=True)
class RequestDeletion:
    """A write: nobody has used it for long enough. Nothing may be attached."""


def decide(volume: VolumeSnapshot, now: datetime) -> Decision[VolumeState]:
    """The first thing that holds."""
    match volume.status:
        case S.DELETED:
            return Decision(S.DELETED)
        case S.SUBMITTED | S.PROVISIONING | S.ACTIVE | S.FAILED:
            pass
        case _:
            assert_never(volume.status)
    if volume.delete_requested:
        return _decide_deletion(volume, now)
    if volume.status is S.FAILED:
        return Decision(S.FAILED)
    if volume.status is S.ACTIVE:
        return _decide_active(volume, now)
    if volume.failure is not None:
        return Decision(S.FAILED, message=volume.failure, wake=(volume.placement_key,))
    if volume.has_disk:
        return Decision(S.ACTIVE, wake=(volume.placement_key,), again=True)
    return Decision(volume.status, effects=(EnsureVolume(),), look_again_at=now + POLL)


def _decide_deletion(volume: VolumeSnapshot, now: datetime) -> Decision[VolumeState]:
    """A disk of the user's own is only forgotten."""
    if volume.is_gone or volume.is_external:
        return Decision(S.DELETED, wake=(volume.placement_key,))
    return Decision(volume.status, effects=(EnsureDeleted(),), look_again_at=now + POLL)


def _decide_active(volume: VolumeSnapshot, now: datetime) -> Decision[VolumeState]:
    unused = [one for one in volume.attachments if not one.is_used]
    detached = tuple(one.instance_id for one in unused if one.is_detached)
    if detached:
        return Decision(S.ACTIVE, writes=(DropAttachments(detached),), wake=(volume.placement_key,), again=True)
    if unused:
        effects = tuple(EnsureDetached(one.instance_id) for one in unused)
        return Decision(S.ACTIVE, effects=effects, look_again_at=now + POLL)
    if volume.attachments or volume.cleanup_after is None:
        return Decision(S.ACTIVE)
    due = volume.idle_since + volume.cleanup_after
    if now >= due:
        return Decision(S.ACTIVE, writes=(RequestDeletion(),), again=True)
    return Decision(S.ACTIVE, look_again_at=due)

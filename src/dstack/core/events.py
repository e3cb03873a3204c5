"""What happened, who did it, and to what."""

import enum
from uuid import UUID

from dstack.core.models import CoreModel, Timestamp


class EventTargetType(str, enum.Enum):
    """The kinds of things that events are about."""

    PROJECT = "project"
    USER = "user"
    FLEET = "fleet"
    INSTANCE = "instance"
    RUN = "run"
    JOB = "job"
    VOLUME = "volume"
    GATEWAY = "gateway"
    GATEWAY_REPLICA = "gateway-replica"
    SECRET = "secret"
    PRESET = "preset"


class EventTarget(CoreModel):
    """A thing that an event is about. `type` is a text, so that newer kinds do not break older readers."""

    type: str
    project_id: UUID | None = None
    project_name: str | None = None
    is_project_deleted: bool | None = None
    id: UUID
    name: str


class Event(CoreModel):
    """Something that happened. Without an actor the server did it by itself."""

    id: UUID
    message: str
    recorded_at: Timestamp
    actor_user_id: UUID | None = None
    actor_user: str | None = None
    is_actor_user_deleted: bool | None = None
    targets: list[EventTarget]

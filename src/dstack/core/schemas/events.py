"""`/api/events`."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from dstack.core.events import EventTargetType
from dstack.core.models import CoreModel, Timestamp


class ListEventsRequest(CoreModel):
    """A page of events. `target_*`: about these; `within_*`: about these and what belongs to them."""

    target_projects: list[UUID] | None = None
    target_users: list[UUID] | None = None
    target_fleets: list[UUID] | None = None
    target_instances: list[UUID] | None = None
    target_runs: list[UUID] | None = None
    target_jobs: list[UUID] | None = None
    target_volumes: list[UUID] | None = None
    target_gateways: list[UUID] | None = None
    target_gateway_replicas: list[UUID] | None = None
    target_secrets: list[UUID] | None = None
    target_presets: list[UUID] | None = None
    within_projects: list[UUID] | None = None
    within_fleets: list[UUID] | None = None
    within_runs: list[UUID] | None = None
    within_gateways: list[UUID] | None = None
    include_target_types: list[EventTargetType] | None = None
    actors: list[UUID | None] | None = None
    prev_recorded_at: Timestamp | None = None
    prev_id: UUID | None = None
    limit: int = Field(default=100, ge=1, le=100)
    ascending: bool = False

"""Listing events: what a user may see, filtered, paged by (recorded_at, id)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.tables import EventRow, EventTargetRow, InstanceRow, JobRow, ProjectRow, UserRow

T = EventTargetRow


@dataclass(frozen=True)
class EventFilter:
    """Conditions that all hold; an absent one is None or empty.

    `targets`: target type to ids; an event matches if one of its targets is among them. `within_*`: an event
    matches if one of its targets belongs there. `visible_projects` and `visible_user`: what the caller may see
    (events of these projects, and those about this user); both None for global admins.
    """

    targets: Mapping[str, Sequence[UUID]] = field(default_factory=dict)
    within_projects: Sequence[UUID] | None = None
    within_fleets: Sequence[UUID] | None = None
    within_runs: Sequence[UUID] | None = None
    within_gateways: Sequence[UUID] | None = None
    include_target_types: Sequence[str] | None = None
    actors: Sequence[UUID | None] | None = None
    visible_projects: Sequence[UUID] | None = None
    visible_user: UUID | None = None
    before: tuple[datetime, UUID | None] | None = None
    """The last one of the page before, by (recorded_at, id)."""
    ascending: bool = False
    limit: int = 100


async def list_page(
    session: AsyncSession, wanted: EventFilter
) -> tuple[Sequence[RowMapping], dict[UUID, list[RowMapping]]]:
    """Two queries: events with `actor_name`, `is_actor_deleted`; and their targets by event id, with
    `project_name` and `is_project_deleted`."""
    query = select(
        *EventRow.__table__.c, UserRow.name.label("actor_name"), UserRow.deleted.label("is_actor_deleted")
    ).outerjoin(UserRow, UserRow.id == EventRow.actor_user_id)
    conditions = _target_conditions(wanted)
    for condition in conditions:
        query = query.where(EventRow.id.in_(select(T.event_id).where(condition)))
    if wanted.actors is not None:
        query = query.where(_is_actor(wanted.actors))
    query = query.where(*_further(wanted))
    at, id_ = EventRow.recorded_at, EventRow.id
    order = (at.asc(), id_.asc()) if wanted.ascending else (at.desc(), id_.desc())
    events = (await session.execute(query.order_by(*order).limit(wanted.limit))).mappings().all()
    return events, await _targets_of(session, [event["id"] for event in events])


def _target_conditions(wanted: EventFilter) -> list[ColumnElement[bool]]:
    """Each must hold for some target of the event."""
    conditions: list[ColumnElement[bool]] = [
        and_(T.entity_type == kind, T.entity_id.in_(ids)) for kind, ids in wanted.targets.items()
    ]
    if wanted.within_projects is not None:
        conditions.append(T.project_id.in_(wanted.within_projects))
    if wanted.within_fleets is not None:
        instances = select(InstanceRow.id).where(InstanceRow.fleet_id.in_(wanted.within_fleets))
        conditions.append(
            or_(
                and_(T.entity_type == "fleet", T.entity_id.in_(wanted.within_fleets)),
                and_(T.entity_type == "instance", T.entity_id.in_(instances)),
            )
        )
    if wanted.within_runs is not None:
        jobs = select(JobRow.id).where(JobRow.run_id.in_(wanted.within_runs))
        conditions.append(
            or_(
                and_(T.entity_type == "run", T.entity_id.in_(wanted.within_runs)),
                and_(T.entity_type == "job", T.entity_id.in_(jobs)),
            )
        )
    if wanted.within_gateways is not None:
        conditions.append(and_(T.entity_type == "gateway", T.entity_id.in_(wanted.within_gateways)))
    if wanted.include_target_types is not None:
        conditions.append(T.entity_type.in_(wanted.include_target_types))
    if wanted.visible_projects is not None or wanted.visible_user is not None:
        conditions.append(
            or_(
                T.project_id.in_(wanted.visible_projects or ()),
                and_(T.entity_type == "user", T.entity_id == wanted.visible_user),
            )
        )
    return conditions


def _is_actor(actors: Sequence[UUID | None]) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = EventRow.actor_user_id.in_([actor for actor in actors if actor])
    if None in actors:
        condition = or_(condition, EventRow.actor_user_id.is_(None))
    return condition


def _further(wanted: EventFilter) -> list[ColumnElement[bool]]:
    if wanted.before is None:
        return []
    at, id_ = EventRow.recorded_at, EventRow.id
    last_at, last_id = wanted.before
    further = at > last_at if wanted.ascending else at < last_at
    if last_id is None:
        return [further]
    beyond = id_ > last_id if wanted.ascending else id_ < last_id
    return [or_(further, and_(at == last_at, beyond))]


async def _targets_of(session: AsyncSession, event_ids: Sequence[UUID]) -> dict[UUID, list[RowMapping]]:
    targets: dict[UUID, list[RowMapping]] = {event_id: [] for event_id in event_ids}
    if not event_ids:
        return targets
    query = (
        select(
            *T.__table__.c,
            ProjectRow.name.label("project_name"),
            ProjectRow.original_name.label("project_original_name"),
            ProjectRow.deleted.label("is_project_deleted"),
        )
        .outerjoin(ProjectRow, ProjectRow.id == T.project_id)
        .where(T.event_id.in_(event_ids))
    )
    for target in (await session.execute(query)).mappings():
        targets[target["event_id"]].append(target)
    return targets

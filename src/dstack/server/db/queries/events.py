"""Listing events: what a user may see, filtered, paged by (recorded_at, id)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, CompoundSelect, Select, and_, exists, or_, select, union_all
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.tables import (
    EventRow,
    EventTargetRow,
    GatewayReplicaRow,
    InstanceRow,
    JobRow,
    ProjectRow,
    UserRow,
)

T = EventTargetRow
EventIds = Select[UUID] | CompoundSelect[UUID]


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
    query = page_query(wanted, session.get_bind().dialect.name)
    events = (await session.execute(query)).mappings().all()
    return events, await _targets_of(session, [event["id"] for event in events])


def page_query(wanted: EventFilter, dialect: str) -> Select[Any]:
    """The first of the two, for a database of that dialect."""
    query = select(
        *EventRow.__table__.c, UserRow.name.label("actor_name"), UserRow.deleted.label("is_actor_deleted")
    ).outerjoin(UserRow, UserRow.id == EventRow.actor_user_id)
    query = query.where(*(EventRow.id.in_(ids) for ids in _narrow(wanted)))
    for condition in _wide(wanted, dialect):
        query = query.where(exists().where(T.event_id == EventRow.id, condition))
    if wanted.actors is not None:
        query = query.where(_is_actor(wanted.actors))
    query = query.where(*_further(wanted))
    at, id_ = EventRow.recorded_at, EventRow.id
    order = (at.asc(), id_.asc()) if wanted.ascending else (at.desc(), id_.desc())
    return query.order_by(*order).limit(wanted.limit)


def _narrow(wanted: EventFilter) -> list[EventIds]:
    """Ids of the events that meet each condition. They are few: looked up by the target, never by an OR, of which
    PostgreSQL makes a walk over all targets."""
    found: list[EventIds] = [_events_of(kind, ids) for kind, ids in wanted.targets.items()]
    if wanted.within_fleets is not None:
        instances = select(InstanceRow.id).where(InstanceRow.fleet_id.in_(wanted.within_fleets))
        found.append(union_all(_events_of("fleet", wanted.within_fleets), _events_of("instance", instances)))
    if wanted.within_runs is not None:
        jobs = select(JobRow.id).where(JobRow.run_id.in_(wanted.within_runs))
        found.append(union_all(_events_of("run", wanted.within_runs), _events_of("job", jobs)))
    if wanted.within_gateways is not None:
        machines = select(GatewayReplicaRow.id).where(GatewayReplicaRow.gateway_id.in_(wanted.within_gateways))
        of_machines = _events_of("gateway-replica", machines)
        found.append(union_all(_events_of("gateway", wanted.within_gateways), of_machines))
    return found


def _events_of(kind: str, ids: Sequence[UUID] | Select[UUID]) -> Select[UUID]:
    return select(T.event_id).where(T.entity_type == kind, T.entity_id.in_(ids))


def _wide(wanted: EventFilter, dialect: str) -> list[ColumnElement[bool]]:
    """Each must hold for some target of the event. Most events may meet them: asked of one event after the other,
    the newest first, until a page is full."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.within_projects is not None:
        conditions.append(T.project_id.in_(wanted.within_projects))
    if wanted.include_target_types is not None:
        # SQLite might look for the event among all targets of the type, if it saw the bare column. PostgreSQL has
        # to see it: it knows how many are of the type, and would sort all events if it thought them few.
        kind = T.entity_type.concat("") if dialect == "sqlite" else T.entity_type
        conditions.append(kind.in_(wanted.include_target_types))
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
        .order_by(T.entity_type, T.entity_name)
    )
    for target in (await session.execute(query)).mappings():
        targets[target["event_id"]].append(target)
    return targets

"""What happened: the events that a caller may see."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import RowMapping

from dstack.core.events import Event, EventTarget, EventTargetType
from dstack.core.schemas.events import ListEventsRequest
from dstack.server.access import Caller
from dstack.server.db.queries import events as queries
from dstack.server.operations.context import Context
from dstack.server.operations.visibility import project_ids_of

_TARGET_FIELDS = {
    "target_projects": EventTargetType.PROJECT,
    "target_users": EventTargetType.USER,
    "target_fleets": EventTargetType.FLEET,
    "target_instances": EventTargetType.INSTANCE,
    "target_runs": EventTargetType.RUN,
    "target_jobs": EventTargetType.JOB,
    "target_volumes": EventTargetType.VOLUME,
    "target_gateways": EventTargetType.GATEWAY,
    "target_gateway_replicas": EventTargetType.GATEWAY_REPLICA,
    "target_secrets": EventTargetType.SECRET,
    "target_presets": EventTargetType.PRESET,
}


async def list_events(ctx: Context, caller: Caller, page: ListEventsRequest) -> list[Event]:
    """A page of the events about what the caller can see: own projects and themselves; admins see all."""
    async with ctx.database.session() as session:
        visible: dict[str, Any] = {}
        mine = project_ids_of(caller)
        if mine is not None:
            themselves = caller.user_id if caller.limited_to is None else None
            visible = {"visible_projects": list(await session.scalars(mine)), "visible_user": themselves}
        rows, targets = await queries.list_page(session, _filter(page, visible))
    return [_to_event(row, [_to_target(target) for target in targets[row["id"]]]) for row in rows]


def _filter(page: ListEventsRequest, visible: dict[str, Any]) -> queries.EventFilter:
    targets = {kind.value: getattr(page, field) for field, kind in _TARGET_FIELDS.items()}
    types = page.include_target_types
    return queries.EventFilter(
        targets={kind: ids for kind, ids in targets.items() if ids is not None},
        within_projects=page.within_projects,
        within_fleets=page.within_fleets,
        within_runs=page.within_runs,
        within_gateways=page.within_gateways,
        include_target_types=None if types is None else [kind.value for kind in types],
        actors=page.actors,
        before=None if page.prev_recorded_at is None else (page.prev_recorded_at, page.prev_id),
        ascending=page.ascending,
        limit=page.limit,
        **visible,
    )


def _to_event(row: RowMapping, targets: list[EventTarget]) -> Event:
    return Event(
        id=row["id"],
        message=row["message"],
        recorded_at=row["recorded_at"],
        actor_user_id=row["actor_user_id"],
        actor_user=row["actor_name"],
        is_actor_user_deleted=row["is_actor_deleted"],
        targets=targets,
    )


def _to_target(row: RowMapping) -> EventTarget:
    return EventTarget(
        type=row["entity_type"],
        project_id=row["project_id"],
        project_name=row["project_original_name"] or row["project_name"],
        is_project_deleted=row["is_project_deleted"],
        id=row["entity_id"],
        name=row["entity_name"],
    )

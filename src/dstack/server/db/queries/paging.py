"""Pages of lists: by a time column, then by id, as the REST API's `prev_*` fields say."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import InstrumentedAttribute


def page(
    statement: Select[Any],
    time: InstrumentedAttribute[datetime],
    id: InstrumentedAttribute[UUID],
    *,
    after: tuple[datetime, UUID | None] | None,
    limit: int,
    ascending: bool,
) -> Select[Any]:
    """The statement for one page, newest first unless `ascending`. `after`: time and id of the last one before."""
    if after is not None:
        last_time, last_id = after
        beyond = time > last_time if ascending else time < last_time
        if last_id is not None:
            next_id = id > last_id if ascending else id < last_id
            beyond = or_(beyond, and_(time == last_time, next_id))
        statement = statement.where(beyond)
    order = (time.asc(), id.asc()) if ascending else (time.desc(), id.desc())
    return statement.order_by(*order).limit(limit)


def position(time: datetime | None, id: UUID | None) -> tuple[datetime, UUID | None] | None:
    """Of the fields `prev_<time>` and `prev_id` of a request."""
    return None if time is None else (time, id)

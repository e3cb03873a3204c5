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
    after_time: datetime | None,
    after_id: UUID | None,
    limit: int,
    ascending: bool,
) -> Select[Any]:
    """The statement for one page, newest first unless `ascending`."""
    if after_time is not None:
        beyond = time > after_time if ascending else time < after_time
        if after_id is not None:
            next_id = id > after_id if ascending else id < after_id
            beyond = or_(beyond, and_(time == after_time, next_id))
        statement = statement.where(beyond)
    order = (time.asc(), id.asc()) if ascending else (time.desc(), id.desc())
    return statement.order_by(*order).limit(limit)

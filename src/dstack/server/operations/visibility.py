"""Which projects a list over all of them may draw from."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select

from dstack.core.users import GlobalRole
from dstack.server.access import Caller
from dstack.server.db.tables import MemberRow, ProjectRow


def project_ids_of(caller: Caller) -> Select[Any] | None:
    """Those whose contents the caller may see: admins all, others theirs, within the token's limit. None: all."""
    if caller.is_admin:
        return None
    limit = caller.limited_to
    if limit is not None and caller.global_role is GlobalRole.ADMIN:
        return select(ProjectRow.id).where(ProjectRow.id.in_(limit))
    joined = select(MemberRow.project_id).where(MemberRow.user_id == caller.user_id)
    return joined if limit is None else joined.where(MemberRow.project_id.in_(limit))

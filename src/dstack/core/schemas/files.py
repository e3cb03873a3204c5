"""`/api/files`."""

from __future__ import annotations

from dstack.core.models import CoreModel


class GetFileArchiveByHashRequest(CoreModel):
    """An archive of the caller by its hash."""

    hash: str

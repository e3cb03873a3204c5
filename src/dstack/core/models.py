"""The base of every model of the vocabulary."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class CoreModel(BaseModel):
    """Unknown keys are errors, so that a misspelt field is never ignored in silence.

    Whoever reads what another version wrote (an answer of a server, a stored row) passes `extra="ignore"` to
    `model_validate` or `model_validate_json`; it applies at every level. Validators are built at first use,
    so importing a model costs next to nothing.
    """

    model_config = ConfigDict(
        extra="forbid",
        defer_build=True,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
    )


def as_utc(moment: datetime) -> datetime:
    """The same moment in UTC; one without an offset is taken to be in UTC."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    return moment.astimezone(timezone.utc)


Timestamp = Annotated[datetime, AfterValidator(as_utc)]
"""A moment in UTC; written as ISO 8601 with `Z`."""
